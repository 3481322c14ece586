// Package p9srv is a 9P server engine: it serves any hugelgupf/p9 Attacher
// over any byte stream. It knows no log and no Mezzo tree.
package p9srv
