package definition

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sort"
	"strings"

	"github.com/stepworker/stepworker/credentials"
	"github.com/stepworker/stepworker/internal/strictjson"
)

// Catalog is the connectors of one folder.
type Catalog struct{ defs map[string]*Connector }

// Get returns a connector by name.
func (c *Catalog) Get(name string) (*Connector, bool) { d, ok := c.defs[name]; return d, ok }

// Names are all connectors' names, sorted.
func (c *Catalog) Names() []string {
	names := make([]string, 0, len(c.defs))
	for n := range c.defs {
		names = append(names, n)
	}
	sort.Strings(names)
	return names
}

// Nearest is the connector whose name is most like the given one, or "".
func (c *Catalog) Nearest(name string) string { return strictjson.Nearest(name, c.Names()) }

// Lacks says what a credential names that is not here, its connector or one of
// that one's alternatives; "" where nothing is amiss.
func (c *Catalog) Lacks(cred *credentials.Credential) string {
	d, ok := c.Get(cred.Connector)
	if !ok {
		text := fmt.Sprintf("there is no connector %q, which the credential names", cred.Connector)
		if near := c.Nearest(cred.Connector); near != "" {
			text += fmt.Sprintf("; did you mean %q?", near)
		}
		return text
	}
	if _, ok := d.For(cred); !ok {
		return d.LacksAuthentication(cred)
	}
	return ""
}

// Sensitive are the parameters of all methods that are marked sensitive, those
// of a connector also at methods that leave them out.
func (c *Catalog) Sensitive() credentials.SensitiveParameters {
	all := credentials.SensitiveParameters{}
	for _, d := range c.defs {
		for _, m := range d.Methods {
			for _, q := range slices.Concat(m.Parameters, m.Dropped) {
				if q.Sensitive && !slices.Contains(all[m.Name], q.Name) {
					all[m.Name] = append(all[m.Name], q.Name)
				}
			}
		}
	}
	return all
}

// Method returns a method by name.
func (d *Connector) Method(name string) (*Method, bool) { m, ok := d.Methods[name]; return m, ok }

// NearestMethod is the method whose name is most like the given one, or "".
func (d *Connector) NearestMethod(name string) string {
	return strictjson.Nearest(name, d.MethodNames)
}

// String is the finding as compilers write it.
func (f Finding) String() string {
	return fmt.Sprintf("%s:%d:%d: %s", f.File, f.Line, f.Column, f.Text)
}

// maxFile bounds a connector file, in bytes.
const maxFile = 1 << 20

// Load reads all connector files of a folder, recursively. Findings do not
// make it fail: the caller decides. Names that begin with a dot are skipped,
// links to files are followed, and so is the folder if it is a link. A folder
// without a connector file is a finding.
func Load(dir string) (*Catalog, []Finding, error) {
	info, err := os.Stat(dir)
	if err != nil {
		return nil, nil, err
	}
	if !info.IsDir() {
		return nil, nil, fmt.Errorf("%s is not a folder", dir)
	}
	return load([]string{dir})
}

// Check reads files and folders, and returns every finding, hints included.
func Check(paths []string) ([]Finding, error) {
	_, findings, err := load(paths)
	return findings, err
}

func load(paths []string) (*Catalog, []Finding, error) {
	c := &Catalog{defs: map[string]*Connector{}}
	var findings []Finding
	for _, root := range paths {
		info, err := os.Stat(root)
		if err != nil {
			return nil, nil, err
		}
		files, folder := []string{root}, filepath.Dir(root)
		if info.IsDir() {
			folder = root
			if files, err = yamlFiles(root); err != nil {
				return nil, nil, err
			}
			if len(files) == 0 {
				findings = append(findings, Finding{File: root, Line: 1, Column: 1, Text: "no connector file (*.yaml, *.yml) in " + root})
			}
		}
		for _, file := range files {
			d, fs := parseFile(file, folder)
			findings = append(findings, fs...)
			if d == nil || d.Name == "" {
				continue
			}
			if other, ok := c.defs[d.Name]; ok {
				if other.File != d.File {
					findings = append(findings, Finding{File: file, Line: d.line, Column: d.column, Text: fmt.Sprintf("connector %q is declared in %s already", d.Name, other.File)})
				}
				continue
			}
			c.defs[d.Name] = d
		}
	}
	return c, findings, nil
}

// yamlFiles are a folder's connector files, by the folder's name as it was given.
func yamlFiles(folder string) ([]string, error) {
	var files []string
	root, err := filepath.EvalSymlinks(folder)
	if err != nil {
		return nil, err
	}
	err = filepath.WalkDir(root, func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if path != root && strings.HasPrefix(e.Name(), ".") {
			if e.IsDir() {
				return filepath.SkipDir
			}
			return nil
		}
		if ext := filepath.Ext(path); e.IsDir() || ext != ".yaml" && ext != ".yml" {
			return nil
		}
		if info, err := os.Stat(path); err == nil && info.IsDir() {
			return nil
		}
		rel, err := filepath.Rel(root, path)
		files = append(files, filepath.Join(folder, rel))
		return err
	})
	return files, err
}
