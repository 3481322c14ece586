package kml_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	"github.com/mezzofs/mezzo/kml"
)

// A log takes records and gives them positions.
func ExampleLog_Append() {
	dir, err := os.MkdirTemp("", "kml")
	if err != nil {
		fmt.Println(err)
		return
	}
	defer os.RemoveAll(dir)
	l, err := kml.Open(filepath.Join(dir, "kml"), kml.Options{})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer l.Close()
	r := &kml.Record{Op: kml.OpMkdir, OID: kml.MakeOID(1, 2), Parent: kml.RootOID, Name: "src",
		Attr: kml.Attr{Mode: 0o40755}, Time: 1}
	if err := l.Append(r); err != nil {
		fmt.Println(err)
		return
	}
	if err := l.Commit(); err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(string(kml.AppendText(nil, r)))
	fmt.Println("durable:", l.Durable())
	// Output:
	// 0.1 1970-01-01T00:00:00.000000001Z mkdir 1:2 in 0:1 "src" mode=040755 uid=0 gid=0 by=0:0
	// durable: 0.2
}

// A reader waits at the tail for what comes.
func ExampleReader_Next() {
	dir, err := os.MkdirTemp("", "kml")
	if err != nil {
		fmt.Println(err)
		return
	}
	defer os.RemoveAll(dir)
	l, err := kml.Open(filepath.Join(dir, "kml"), kml.Options{})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer l.Close()
	r, err := l.ReaderAfter(l.End())
	if err != nil {
		fmt.Println(err)
		return
	}
	defer r.Close()
	done := make(chan struct{})
	go func() {
		defer close(done)
		for range 2 {
			rec, err := r.Next(context.Background())
			if err != nil {
				fmt.Println(err)
				return
			}
			fmt.Println(rec.Pos, rec.Op, rec.Name)
		}
	}()
	for _, name := range []string{"a", "b"} {
		if err := l.Append(&kml.Record{Op: kml.OpCreate, Parent: kml.RootOID, Name: name}); err != nil {
			fmt.Println(err)
			return
		}
	}
	<-done
	// Output:
	// 0.1 create a
	// 0.2 create b
}
