package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"syscall"
	"time"
)

// patience is far more than what is refused takes to be refused.
const patience = 5 * time.Second

// reach tries targets, such as tcp/192.0.2.1:80 or lookup/example.com, at once, and tells what came of each.
func reach(targets []string) map[string]string {
	var mu sync.Mutex
	var all sync.WaitGroup
	found := map[string]string{}
	for _, t := range targets {
		all.Go(func() {
			said, err := reachOne(t)
			mu.Lock()
			defer mu.Unlock()
			if found[t] = "ok " + said; err != nil {
				found[t] = err.Error()
			}
		})
	}
	all.Wait()
	return found
}

// reachOne says what the other side said.
func reachOne(target string) (string, error) {
	kind, address, _ := strings.Cut(target, "/")
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	switch kind {
	case "lookup":
		names, err := net.DefaultResolver.LookupHost(ctx, address)
		return strings.Join(names, " "), err
	case "lookup-tcp":
		r := net.Resolver{PreferGo: true, Dial: func(ctx context.Context, _, server string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "tcp", server)
		}}
		names, err := r.LookupHost(ctx, address)
		return strings.Join(names, " "), err
	}
	conn, err := (&net.Dialer{}).DialContext(ctx, kind, address)
	if err != nil {
		return "", err
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(patience))
	if kind == "udp" {
		if _, err := conn.Write([]byte("?")); err != nil {
			return "", err
		}
		b := make([]byte, 256)
		n, err := conn.Read(b)
		return string(b[:n]), err
	}
	b, err := io.ReadAll(conn)
	return string(b), err
}

// serve says where it is reachable, and answers there.
func serve(port string) {
	l, err := net.Listen("tcp", ":"+port)
	if err != nil {
		fmt.Println(err)
		return
	}
	addresses, _ := net.InterfaceAddrs()
	for _, a := range addresses {
		if ip := a.(*net.IPNet).IP; !ip.IsLoopback() {
			fmt.Println(net.JoinHostPort(ip.String(), port))
		}
	}
	fmt.Println("serving")
	for {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		fmt.Println("reached from", conn.RemoteAddr())
		_, _ = io.WriteString(conn, "sandbox")
		_ = conn.Close()
	}
}

// spoof sends a datagram with another's address as its source, which IPv6 allows to anybody, and then an honest one.
func spoof(source, target string) error {
	address, err := net.ResolveUDPAddr("udp6", target)
	if err != nil {
		return err
	}
	to := syscall.SockaddrInet6{Port: address.Port, Addr: [16]byte(address.IP.To16())}
	for _, message := range []string{"forged", "honest"} {
		fd, err := syscall.Socket(syscall.AF_INET6, syscall.SOCK_DGRAM, 0)
		if err != nil {
			return err
		}
		if message == "forged" {
			const freeBind = 78 // IPV6_FREEBIND
			if err := syscall.SetsockoptInt(fd, syscall.IPPROTO_IPV6, freeBind, 1); err != nil {
				return err
			}
			if err := syscall.Bind(fd, &syscall.SockaddrInet6{Addr: [16]byte(net.ParseIP(source).To16())}); err != nil {
				return err
			}
		}
		if err := syscall.Sendto(fd, []byte(message), 0, &to); err != nil {
			return err
		}
	}
	return nil
}
