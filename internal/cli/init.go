package cli

import "github.com/spf13/cobra"

func (a *app) initCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "init DIR",
		Short: "make a folder a fileset",
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := checkFolder(args[0]); err != nil {
				return err
			}
			return a.initTree(cmd.Context(), args[0])
		},
	}
}
