package egress

import (
	"errors"
	"fmt"
	"strings"
	"sync"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"
)

// table is ours in the kernel. Each change is one transaction.
type table struct {
	nft  *nftables.Table
	mu   sync.Mutex // the library counts sets without one
	conn *nftables.Conn
}

func openTable(instance string) (*table, error) {
	conn, err := nftables.New()
	if err != nil {
		return nil, fmt.Errorf("talk to nf_tables: %w", err)
	}
	return &table{conn: conn, nft: &nftables.Table{Name: tablePrefix + instance, Family: nftables.TableFamilyINet}}, nil
}

// replace puts the rules in force in the place of what was there, and keeps the records.
func (t *table) replace(r ruleset, kept records) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.drop()
	t.conn.AddTable(t.nft)
	chains := r.chains()
	made := map[string]*nftables.Chain{}
	for _, c := range chains {
		made[c.name] = t.conn.AddChain(&nftables.Chain{Table: t.nft, Name: c.name, Type: c.kind, Hooknum: c.hook, Priority: c.priority})
	}
	for set, elements := range r.sets(t.nft) {
		if err := t.conn.AddSet(set, elements); err != nil {
			return fmt.Errorf("make set %s: %w", set.Name, err)
		}
	}
	for _, name := range recordSets() {
		if err := t.conn.AddSet(recordSet(t.nft, name), kept.elements(name)); err != nil {
			return fmt.Errorf("make set %s: %w", name, err)
		}
	}
	for _, c := range chains {
		for _, e := range c.rules {
			t.conn.AddRule(&nftables.Rule{Table: t.nft, Chain: made[c.name], Exprs: e})
		}
	}
	return t.flush()
}

// drop deletes the table, which needn't be there.
func (t *table) drop() {
	t.conn.AddTable(t.nft)
	t.conn.DelTable(t.nft)
}

func (t *table) flush() error {
	err := t.conn.Flush()
	if errors.Is(err, unix.EPERM) {
		return fmt.Errorf("change nf_tables rules (is CAP_NET_ADMIN missing?): %w", err)
	}
	if err != nil {
		return fmt.Errorf("change nf_tables rules (does the kernel have nf_tables with inet, nat, fib and reject?): %w", err)
	}
	return nil
}

// absent tells of a kernel that has no nf_tables: nothing can be left there.
func absent(err error) bool {
	return errors.Is(err, unix.EPROTONOSUPPORT) || errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EOPNOTSUPP)
}

func (t *table) remove() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.drop()
	return t.flush()
}

// record adds an interface to one of the sets of records.
func (t *table) record(set, name string) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	err := t.conn.SetAddElements(recordSet(t.nft, set), []nftables.SetElement{{Key: ifName(name)}})
	return errors.Join(err, t.flush())
}

// records are what Mayfly has changed of the host: names of interfaces by set. They are kept in the tables because
// a table lives exactly as long as such a change does: until the next boot.
type records map[string]map[string]bool

func recordSet(t *nftables.Table, name string) *nftables.Set {
	return &nftables.Set{Table: t, Name: name, KeyType: nftables.TypeIFName}
}

func (r records) add(set, name string) {
	if r[set] == nil {
		r[set] = map[string]bool{}
	}
	r[set][name] = true
}

func (r records) elements(set string) []nftables.SetElement {
	all := []nftables.SetElement{}
	for name := range r[set] {
		all = append(all, nftables.SetElement{Key: ifName(name)})
	}
	return all
}

// readRecords unites the records of all Mayflies of the host: the last one that goes puts things back. It tells whether
// there are others.
func (t *table) readRecords() (all records, others bool, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	tables, err := t.conn.ListTablesOfFamily(nftables.TableFamilyINet)
	if err != nil {
		return nil, false, fmt.Errorf("list nf_tables tables (does the kernel have nf_tables?): %w", err)
	}
	all = records{}
	for _, other := range tables {
		if !strings.HasPrefix(other.Name, tablePrefix) {
			continue
		}
		others = others || other.Name != t.nft.Name
		if err := t.readInto(all, other); err != nil {
			return nil, false, err
		}
	}
	return all, others, nil
}

func (t *table) readInto(all records, other *nftables.Table) error {
	for _, name := range recordSets() {
		elements, err := t.conn.GetSetElements(recordSet(other, name))
		if err != nil {
			// The library hides why.
			if _, gone := t.conn.GetSetByName(other, name); errors.Is(gone, unix.ENOENT) {
				continue // it is being made, or removed
			}
			return fmt.Errorf("read set %s of table %s: %w", name, other.Name, err)
		}
		for _, e := range elements {
			all.add(name, strings.TrimRight(string(e.Key), "\x00"))
		}
	}
	return nil
}
