package hooks

import (
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// hooks.d.ts is what authors' editors read; it declares what is there, and says
// of data where it is there.
func TestDeclarations_areTheRuntimes(t *testing.T) {
	raw, err := os.ReadFile("hooks.d.ts")
	if err != nil {
		t.Fatal(err)
	}
	source := string(raw)
	var declared []string
	for _, m := range regexp.MustCompile(`(?m)^declare (?:function|const|var|let|class) (\w+)`).FindAllStringSubmatch(source, -1) {
		declared = append(declared, m[1])
	}
	want := slices.Concat(functionNames, exceptionNames, dataNames())
	slices.Sort(declared)
	slices.Sort(want)
	if diff := cmp.Diff(want, declared); diff != "" {
		t.Errorf("names (-runtime +hooks.d.ts):\n%s", diff)
	}

	if !strings.Contains(source, "next_last_successful_run_date: string | Date |") { // as docs/steps.md says
		t.Error("an editor would refuse a Date as the next last successful run date")
	}

	data := map[string][2][]string{}
	for _, m := range regexp.MustCompile(`(?s)/\*\*((?:[^*]|\*[^/])*?)\*/\ndeclare let (\w+)`).FindAllStringSubmatch(source, -1) {
		data[m[2]] = [2][]string{eventList(m[1], "Events"), eventList(m[1], "Written in")}
	}
	for _, d := range Data {
		if diff := cmp.Diff([2][]string{sorted(d.Events), sorted(d.Writes)}, data[d.Name]); diff != "" {
			t.Errorf("%s (-Data +hooks.d.ts):\n%s", d.Name, diff)
		}
	}

	var handlers []string
	for _, m := range regexp.MustCompile(`(?m)^  (\w+)\?: Handler;`).FindAllStringSubmatch(source, -1) {
		handlers = append(handlers, m[1])
	}
	if diff := cmp.Diff(EventNames, handlers); diff != "" {
		t.Errorf("handlers (-EventNames +hooks.d.ts):\n%s", diff)
	}
}

func sorted(names []string) []string { return slices.Compact(slices.Sorted(slices.Values(names))) }

// eventList reads "Events: a, b." out of a comment.
func eventList(comment, title string) []string {
	m := regexp.MustCompile(title + `: ([^.]*)\.`).FindStringSubmatch(comment)
	if m == nil {
		return nil
	}
	if m[1] == "all" {
		return sorted(EventNames)
	}
	return sorted(strings.Split(m[1], ", "))
}

// Of data no name or event is there twice, and what is written can be read.
func TestData_isConsistent(t *testing.T) {
	if names := dataNames(); !slices.IsSorted(names) || len(slices.Compact(names)) != len(Data) {
		t.Error("the names are not in order, or one is there twice")
	}
	for _, d := range Data {
		for _, e := range d.Events {
			if !slices.Contains(EventNames, e) {
				t.Errorf("%s: there is no event %s", d.Name, e)
			}
		}
		for _, e := range d.Writes {
			if !slices.Contains(d.Events, e) {
				t.Errorf("%s is written in %s, which does not have it", d.Name, e)
			}
		}
	}
}
