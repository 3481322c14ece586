package wire

// New is an empty message of type t, or nil where this package has none.
func New(t Type) Msg {
	if t.IsRequest() {
		return newRequest(t)
	}
	return newAnswer(t)
}

func newRequest(t Type) Msg {
	switch t {
	case TypeTstatfs:
		return new(Tstatfs)
	case TypeTlopen:
		return new(Tlopen)
	case TypeTlcreate:
		return new(Tlcreate)
	case TypeTsymlink:
		return new(Tsymlink)
	case TypeTmknod:
		return new(Tmknod)
	case TypeTrename:
		return new(Trename)
	case TypeTreadlink:
		return new(Treadlink)
	case TypeTgetattr:
		return new(Tgetattr)
	case TypeTsetattr:
		return new(Tsetattr)
	case TypeTxattrwalk:
		return new(Txattrwalk)
	case TypeTxattrcreate:
		return new(Txattrcreate)
	case TypeTreaddir:
		return new(Treaddir)
	case TypeTfsync:
		return new(Tfsync)
	case TypeTlock:
		return new(Tlock)
	case TypeTgetlock:
		return new(Tgetlock)
	case TypeTlink:
		return new(Tlink)
	case TypeTmkdir:
		return new(Tmkdir)
	case TypeTrenameat:
		return new(Trenameat)
	case TypeTunlinkat:
		return new(Tunlinkat)
	case TypeTversion:
		return new(Tversion)
	case TypeTauth:
		return new(Tauth)
	case TypeTattach:
		return new(Tattach)
	case TypeTflush:
		return new(Tflush)
	case TypeTwalk:
		return new(Twalk)
	case TypeTread:
		return new(Tread)
	case TypeTwrite:
		return new(Twrite)
	case TypeTclunk:
		return new(Tclunk)
	case TypeTremove:
		return new(Tremove)
	case TypeTopen:
		return new(Topen)
	case TypeTcreate:
		return new(Tcreate)
	case TypeTstat:
		return new(Tstat)
	case TypeTwstat:
		return new(Twstat)
	}
	return nil
}

func newAnswer(t Type) Msg {
	switch t {
	case TypeRlerror:
		return new(Rlerror)
	case TypeRstatfs:
		return new(Rstatfs)
	case TypeRlopen:
		return new(Rlopen)
	case TypeRlcreate:
		return new(Rlcreate)
	case TypeRsymlink:
		return new(Rsymlink)
	case TypeRmknod:
		return new(Rmknod)
	case TypeRrename:
		return new(Rrename)
	case TypeRreadlink:
		return new(Rreadlink)
	case TypeRgetattr:
		return new(Rgetattr)
	case TypeRsetattr:
		return new(Rsetattr)
	case TypeRxattrwalk:
		return new(Rxattrwalk)
	case TypeRxattrcreate:
		return new(Rxattrcreate)
	case TypeRreaddir:
		return new(Rreaddir)
	case TypeRfsync:
		return new(Rfsync)
	case TypeRlock:
		return new(Rlock)
	case TypeRgetlock:
		return new(Rgetlock)
	case TypeRlink:
		return new(Rlink)
	case TypeRmkdir:
		return new(Rmkdir)
	case TypeRrenameat:
		return new(Rrenameat)
	case TypeRunlinkat:
		return new(Runlinkat)
	case TypeRversion:
		return new(Rversion)
	case TypeRauth:
		return new(Rauth)
	case TypeRattach:
		return new(Rattach)
	case TypeRflush:
		return new(Rflush)
	case TypeRwalk:
		return new(Rwalk)
	case TypeRread:
		return new(Rread)
	case TypeRwrite:
		return new(Rwrite)
	case TypeRclunk:
		return new(Rclunk)
	case TypeRremove:
		return new(Rremove)
	case TypeRerror:
		return new(Rerror)
	case TypeRopen:
		return new(Ropen)
	case TypeRcreate:
		return new(Rcreate)
	case TypeRstat:
		return new(Rstat)
	case TypeRwstat:
		return new(Rwstat)
	}
	return nil
}
