package egress

import (
	"net"
	"net/netip"
	"strconv"
	"strings"
)

// nameservers are the addresses, with port 53, that a resolv.conf(5) names.
func nameservers(text string) []string {
	var all []string
	for line := range strings.Lines(text) {
		f := strings.Fields(line)
		if len(f) < 2 || f[0] != "nameserver" {
			continue
		}
		if ip, err := netip.ParseAddr(f[1]); err == nil {
			all = append(all, net.JoinHostPort(ip.String(), strconv.Itoa(dnsPort)))
		}
	}
	return all
}
