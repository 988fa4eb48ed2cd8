// Package tap prints test results in the Test Anything Protocol, version 13.
//
// A stand-in, under the import path that the validation suite names, with the calls that the suite makes and no others:
// the package itself is not in Debian.
package tap

import (
	"encoding/json"
	"fmt"
	"os"
	"strings"
)

// T prints the results of one program, in order, to standard output.
type T struct {
	last *int
	// What stands between number and description.
	mark string
}

// New returns a printer that has printed nothing yet.
func New() *T {
	return &T{last: new(int), mark: "-"}
}

// Header begins the output; a count of 0 leaves the plan to AutoPlan.
func (t *T) Header(count int) {
	fmt.Println("TAP version 13")
	if count > 0 {
		t.plan(count)
	}
}

// AutoPlan prints the plan: as many tests as there were.
func (t *T) AutoPlan() {
	t.plan(*t.last)
}

// Ok prints the next result.
func (t *T) Ok(passed bool, description string) {
	word := "ok"
	if !passed {
		word = "not ok"
	}
	*t.last++
	fmt.Printf("%s %d %s %s\n", word, *t.last, t.mark, oneLine(description))
}

// Pass prints a success.
func (t *T) Pass(description string) {
	t.Ok(true, description)
}

// Fail prints a failure.
func (t *T) Fail(description string) {
	t.Ok(false, description)
}

// Skip prints count results that were skipped.
func (t *T) Skip(count int, reason string) {
	for i := 0; i < count; i++ {
		*t.last++
		fmt.Printf("ok %d # SKIP %s\n", *t.last, oneLine(reason))
	}
}

// Todo returns a printer whose results do not count: the suite says so of what it cannot tell.
func (t *T) Todo() *T {
	return &T{last: t.last, mark: "# TODO"}
}

// Diagnostic prints a comment.
func (t *T) Diagnostic(text string) {
	for _, line := range strings.Split(text, "\n") {
		fmt.Println("#", line)
	}
}

// Diagnosticf prints a comment after a format.
func (t *T) Diagnosticf(format string, values ...interface{}) {
	t.Diagnostic(fmt.Sprintf(format, values...))
}

// YAML prints what belongs to the last result; in JSON, which is YAML too.
func (t *T) YAML(value interface{}) error {
	text, err := json.MarshalIndent(value, "  ", "  ")
	if err != nil {
		fmt.Fprintln(os.Stderr, "tap: cannot print a diagnostic:", err)
		return err
	}
	fmt.Printf("  ---\n  %s\n  ...\n", text)
	return nil
}

func (t *T) plan(count int) {
	fmt.Printf("1..%d\n", count)
}

func oneLine(text string) string {
	return strings.ReplaceAll(text, "\n", " ")
}
