package main

import (
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"time"
)

// telemeter subscribes to telemetry and prints what it gets.
func telemeter(id string) {
	l, err := net.Listen("tcp", "sandbox.localdomain:8080")
	if err != nil {
		panic(err)
	}
	s := &http.Server{ReadHeaderTimeout: time.Minute, Handler: http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		var all []struct {
			Type   string
			Record json.RawMessage
		}
		if err := json.Unmarshal(body, &all); err != nil {
			panic(string(body))
		}
		for _, e := range all {
			fmt.Printf("telemetry %s %s\n", e.Type, e.Record)
		}
	})}
	go s.Serve(l)
	resp := call(http.MethodPut, "/2022-07-01/telemetry", map[string]string{"Lambda-Extension-Identifier": id}, `{
		"schemaVersion": "2022-12-13", "types": ["platform", "function"], "buffering": {"timeoutMs": 25},
		"destination": {"protocol": "HTTP", "URI": "http://sandbox.localdomain:8080"}}`)
	defer resp.Body.Close()
	text, _ := io.ReadAll(resp.Body)
	fmt.Printf("subscribed: %d %s\n", resp.StatusCode, text)
}
