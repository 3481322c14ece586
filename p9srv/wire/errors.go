package wire

import (
	"errors"
	"fmt"
)

// ErrMessage is wrapped by every error of this package: the bytes are not a
// valid message.
var ErrMessage = errors.New("malformed 9P message")

var (
	errShort    = fmt.Errorf("%w: ends too early", ErrMessage)
	errTrailing = fmt.Errorf("%w: bytes behind its end", ErrMessage)
	errCount    = fmt.Errorf("%w: count is not the length of the data", ErrMessage)
	errWalk     = fmt.Errorf("%w: more than 16 names in a walk", ErrMessage)
	errSize     = fmt.Errorf("%w: size is below a header's", ErrMessage)
)
