package main

import (
	"encoding/json"
	"io"
	"os"
	"regexp"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/stepworker/stepworker/connectors/definition"
	"github.com/stepworker/stepworker/credentials"
	"github.com/stepworker/stepworker/internal/cli"
)

// maxSetting is the length of the longest partner setting, in bytes.
const maxSetting = 64 << 10

var connectorName = regexp.MustCompile(`^[a-z][a-z0-9-]*$`)

func keySeal(log *cli.Log) *cobra.Command {
	file := ""
	cmd := &cobra.Command{Use: "seal CONNECTOR MEMBER", Short: "Seal a partner setting, read from stdin, for the file of --partner-settings", Args: cobra.ExactArgs(2)}
	cmd.Long = cmd.Short + ".\nMEMBER is client_id, client_secret, private_key or properties.NAME; what is printed stands there in place of the text."
	cmd.Flags().StringVar(&file, "keys-file", "", "file of sealing keys (or STEPWORKER_KEYS)")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		connector, member := args[0], args[1]
		mistakes := append(cli.Resolve(cmd.Flags()), log.Mistakes()...)
		keys, err := readKeys(file)
		if err != nil {
			mistakes = append(mistakes, err.Error())
		}
		if !connectorName.MatchString(connector) {
			mistakes = append(mistakes, "CONNECTOR: a name like acme-crm is needed (a-z, 0-9, -)")
		}
		if err := definition.CheckPartnerMember(member); err != nil {
			mistakes = append(mistakes, "MEMBER: "+err.Error())
		}
		if len(mistakes) > 0 {
			return cli.Usage("%s", joined(mistakes))
		}
		secret, err := readSecret(cmd.InOrStdin())
		switch {
		case err != nil:
			return cli.Failed("stdin cannot be read: %v", err)
		case secret == "":
			return cli.Usage("stdin holds no secret")
		case len(secret) > maxSetting:
			return cli.Usage("stdin holds more than %d bytes", maxSetting)
		}
		value := credentials.NewSecret(secret)
		if member == "private_key" {
			if _, err := credentials.ParsePrivateKey(value); err != nil {
				return cli.Usage("private_key: %v", err)
			}
		}
		sealed, err := json.Marshal(map[string]string{"sealed": keys.SealSetting(connector, member, value)})
		if err != nil {
			return cli.Failed("%v", err)
		}
		return say(cmd, string(sealed))
	}
	return cmd
}

// readSecret reads a secret without the line's end behind it; a terminal does
// not show it.
func readSecret(in io.Reader) (string, error) {
	var raw []byte
	var err error
	if f, ok := in.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
		raw, err = term.ReadPassword(int(f.Fd()))
	} else {
		raw, err = io.ReadAll(io.LimitReader(in, maxSetting+2))
	}
	return strings.TrimSuffix(strings.TrimSuffix(string(raw), "\n"), "\r"), err
}
