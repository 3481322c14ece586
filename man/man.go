package man

import "embed"

// Pages are the mdoc sources, named PAGE.SECTION.
//
//go:embed *.[1-9]
var Pages embed.FS
