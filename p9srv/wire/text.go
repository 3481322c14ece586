package wire

import (
	"fmt"
	"reflect"
	"strings"
)

// textData is how many bytes of a payload Text shows.
const textData = 16

// Text is a message in one line, for traces: its name, tag and fields. Strings
// are quoted, payloads cut, and attributes show only fields that count.
//
//	Twalk tag 3 fid 1 newfid 7 names ["usr" "bin"]
func Text(tag Tag, m Msg) string {
	var s strings.Builder
	if tag == NoTag {
		fmt.Fprintf(&s, "%v tag none", m.MsgType())
	} else {
		fmt.Fprintf(&s, "%v tag %d", m.MsgType(), tag)
	}
	v := reflect.ValueOf(m).Elem()
	for i := range v.NumField() {
		fmt.Fprintf(&s, " %s ", strings.ToLower(v.Type().Field(i).Name))
		textValue(&s, v.Field(i))
	}
	return s.String()
}

func textValue(s *strings.Builder, v reflect.Value) {
	switch v.Kind() {
	case reflect.String:
		fmt.Fprintf(s, "%q", v.String())
	case reflect.Slice:
		textSlice(s, v)
	case reflect.Struct:
		textStruct(s, v)
	default:
		if name := v.Type().Name(); name == "FileMode" || name == "OpenFlags" {
			fmt.Fprintf(s, "%#o", v.Uint())
			return
		}
		if v.CanUint() {
			textUint(s, v)
			return
		}
		fmt.Fprintf(s, "%v", v.Interface())
	}
}

// textUint shows "none" for a FID or an id with all bits set.
func textUint(s *strings.Builder, v reflect.Value) {
	switch v.Type().Name() {
	case "FID", "UID", "GID":
		if uint32(v.Uint()) == uint32(NoFID) {
			s.WriteString("none")
			return
		}
	}
	fmt.Fprint(s, v.Uint())
}

func textSlice(s *strings.Builder, v reflect.Value) {
	if v.Type().Elem().Kind() == reflect.Uint8 {
		b := v.Bytes()
		fmt.Fprintf(s, "%d bytes %q", len(b), b[:min(len(b), textData)])
		return
	}
	s.WriteByte('[')
	for i := range v.Len() {
		if i > 0 {
			s.WriteByte(' ')
		}
		textValue(s, v.Index(i))
	}
	s.WriteByte(']')
}

// textStruct shows QIDs as type.version.path, masks as the names in them, and
// other structs as their fields that are not zero.
func textStruct(s *strings.Builder, v reflect.Value) {
	if v.Type().Name() == "QID" {
		fmt.Fprintf(s, "%02x.%d.%d", v.Field(0).Uint(), v.Field(1).Uint(), v.Field(2).Uint())
		return
	}
	s.WriteByte('{')
	first := true
	for i := range v.NumField() {
		f := v.Field(i)
		if f.IsZero() {
			continue
		}
		if !first {
			s.WriteByte(' ')
		}
		first = false
		s.WriteString(strings.ToLower(v.Type().Field(i).Name))
		if f.Kind() != reflect.Bool {
			s.WriteByte(' ')
			textValue(s, f)
		}
	}
	s.WriteByte('}')
}
