package main

import (
	"context"
	"fmt"
	"io"
	"log/syslog"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/usbns/usbns/usbip"
	"github.com/usbns/usbns/vhci"
)

func newUsbip() *cobra.Command {
	return &cobra.Command{
		Use:   "usbip COMMAND",
		Short: "Be the stock usbip command, with private controllers",
		Long: "Take the arguments of the usbip command of Linux distributions and print what it\n" +
			"prints; -i N chooses a controller. A link to usbns that is called usbip does the\n" +
			"same. The run directory of the daemon is in the environment, as USBNS_RUN. Where\n" +
			"there is no daemon it uses the files of vhci_hcd.N in /sys, as the original does:\n" +
			"the kernel's, or in a container those of its own controller.",
		Example: "  usbns usbip attach -r 127.0.0.1 -b 1-1\n" +
			"  usbns usbip port --all\n" +
			"  ln -s /usr/bin/usbns /usr/local/sbin/usbip",
		DisableFlagParsing: true,
		RunE: func(cmd *cobra.Command, args []string) error {
			s := stock{
				ctx: cmd.Context(), out: cmd.OutOrStdout(), err: cmd.ErrOrStderr(),
				controllers: findControllers(runDir(), vhci.Sysfs{}), sysfs: "/sys", port: usbip.DefaultPort,
			}
			if !s.run(args) {
				return exitStatus(1)
			}
			return nil
		},
	}
}

// A stock is a run of the stock command (tools/usb/usbip/src in the kernel) with
// the options of the proposal of 2018. Its texts are those of the original, its
// slips and empty lines included, since scripts read them. Where the original
// has nothing to say, the reason is an info more; reasons of the network are
// told by --debug.
//
// It does not repeat that a port above 255 is another port (it is kept in a
// byte), that an empty port is port 0, that a bad --tcp-port is passed over, and
// that a port in an error state makes every command fail.
type stock struct {
	ctx         context.Context
	out, err    io.Writer
	controllers controllers
	sysfs       string
	port        string // of exporters
	debug       bool
	syslog      *syslog.Writer // nil without --log
}

// A stockCommand returns whether it succeeded.
type stockCommand struct {
	name, help, usage string
	run               func(s *stock, args []string) bool
}

func stockCommands() []stockCommand {
	return []stockCommand{
		{"attach", "Attach a remote USB device", attachUsage, (*stock).attach},
		{"detach", "Detach a remote USB device", detachUsage, (*stock).detach},
		{"list", "List exportable or local USB devices", listUsage, (*stock).list},
		{"port", "Show imported USB devices", portUsage, (*stock).ports},
		{"help", "", "", (*stock).help},
		{"version", "", "", (*stock).version},
	}
}

const stockUsage = `usbip [--debug] [--log] [--tcp-port PORT] [version]
             [help] <command> <args>
`

func (s *stock) run(args []string) bool {
	f := pflag.NewFlagSet("usbip", pflag.ContinueOnError)
	f.SetInterspersed(false)
	f.BoolVarP(&s.debug, "debug", "d", false, "")
	log := f.BoolP("log", "l", false, "")
	port := f.StringP("tcp-port", "t", "", "")
	if err := parse(f, args); err != nil {
		fmt.Fprintln(s.out, "usbip: invalid option")
		fmt.Fprint(s.out, "usage: ", stockUsage)
		return false
	}
	if *log {
		if w, err := syslog.New(syslog.LOG_USER|syslog.LOG_INFO, "usbip"); err == nil {
			defer w.Close()
			s.syslog = w
		}
	}
	if f.Changed("tcp-port") && !s.setPort(*port) {
		return false
	}
	for _, c := range stockCommands() {
		if c.name == f.Arg(0) {
			return c.run(s, f.Args()[1:])
		}
	}
	return s.help([]string{f.Arg(0)})
}

func (s *stock) setPort(text string) bool {
	end := strings.IndexFunc(text, func(c rune) bool { return c < '0' || c > '9' })
	number, err := strconv.ParseUint(text, 10, 16)
	switch {
	case text == "" || end == 0:
		s.fail("port: could not parse '%s' as a decimal integer", text)
	case end > 0:
		s.fail("port: garbage at end of '%s'", text)
	case err != nil:
		s.fail("port: %s too high (max=65535)", text)
	default:
		s.port = text
		s.info("using port %d (%q)", number, text)
		return true
	}
	return false
}

// parse parses as getopt does: it takes the beginning of a long option for the
// whole as long as it is the only one that begins so.
func parse(f *pflag.FlagSet, args []string) error {
	f.SetOutput(io.Discard)
	f.Usage = func() {}
	f.SetNormalizeFunc(func(f *pflag.FlagSet, name string) pflag.NormalizedName {
		found := pflag.NormalizedName(name)
		candidates := 0
		f.VisitAll(func(flag *pflag.Flag) {
			switch {
			case flag.Name == name:
				found, candidates = pflag.NormalizedName(name), 2
			case strings.HasPrefix(flag.Name, name) && candidates == 0:
				found, candidates = pflag.NormalizedName(flag.Name), 1
			case strings.HasPrefix(flag.Name, name) && candidates == 1:
				found, candidates = pflag.NormalizedName(name), 2
			}
		})
		return found
	})
	return f.Parse(args)
}

func (s *stock) usage(text string) bool {
	fmt.Fprint(s.out, "usage: ", text)
	return false
}

func (s *stock) help(args []string) bool {
	for _, c := range stockCommands() {
		if len(args) > 0 && args[0] == c.name && c.usage != "" {
			s.usage(c.usage)
			return true
		}
	}
	s.usage(stockUsage)
	fmt.Fprintln(s.out)
	for _, c := range stockCommands() {
		if c.help != "" {
			fmt.Fprintf(s.out, "  %-10s %s\n", c.name, c.help)
		}
	}
	fmt.Fprintln(s.out)
	return len(args) == 0
}

func (s *stock) version([]string) bool {
	fmt.Fprintf(s.out, "usbip (usbns %s)\n", version())
	return true
}

func (s *stock) fail(format string, args ...any) {
	s.say("error", format, args...)
}

func (s *stock) info(format string, args ...any) {
	s.say("info", format, args...)
}

func (s *stock) say(level, format string, args ...any) {
	text := fmt.Sprintf("usbip: "+level+": "+format+"\n", args...)
	fmt.Fprint(s.err, text)
	if s.syslog == nil {
		return
	}
	if level == "error" {
		_ = s.syslog.Err(text)
		return
	}
	_ = s.syslog.Info(text)
}

// reason is for --debug.
func (s *stock) reason(err error) {
	if s.debug {
		s.say("debug", "%v", err)
	}
}

// noController tells why there are no ports to see. It is where the stock tool
// fails to open the files of a controller.
func (s *stock) noController(err error) {
	s.fail("open vhci_driver")
	s.info("%v", err)
}
