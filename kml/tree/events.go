package tree

import "sync"

// watchers hands changes to those who asked for them, in order.
type watchers struct {
	mu   sync.RWMutex
	next int
	fs   map[int]func(Change)
}

func (w *watchers) add(f func(Change)) (cancel func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.fs == nil {
		w.fs = make(map[int]func(Change))
	}
	w.next++
	id := w.next
	w.fs[id] = f
	return func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		delete(w.fs, id)
	}
}

func (w *watchers) emit(c Change) {
	w.mu.RLock()
	defer w.mu.RUnlock()
	for _, f := range w.fs {
		f(c)
	}
}
