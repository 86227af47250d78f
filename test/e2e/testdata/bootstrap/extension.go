package main

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"time"
)

func call(method, path string, header map[string]string, body string) *http.Response {
	req, err := http.NewRequest(method, "http://"+os.Getenv("AWS_LAMBDA_RUNTIME_API")+path, strings.NewReader(body))
	if err != nil {
		panic(err)
	}
	for k, v := range header {
		req.Header.Set(k, v)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		panic(err)
	}
	return resp
}

const base = "/2020-01-01/extension/"

// extension is an external extension that says what it sees. Its name decides what it does wrong.
func extension(name string) {
	switch name {
	case "silent":
		time.Sleep(time.Hour)
	case "early":
		os.Exit(9)
	}
	resp := call(http.MethodPost, base+"register", map[string]string{"Lambda-Extension-Name": name}, `{"events":["INVOKE","SHUTDOWN"]}`)
	text, _ := io.ReadAll(resp.Body)
	resp.Body.Close()
	id := resp.Header.Get("Lambda-Extension-Identifier")
	fmt.Printf("%s registered: %d %s\n", name, resp.StatusCode, text)
	if name == "telemeter" {
		telemeter(id)
	}
	if name == "sorry" {
		header := map[string]string{"Lambda-Extension-Identifier": id, "Lambda-Extension-Function-Error-Type": "Extension.NoLicence"}
		call(http.MethodPost, base+"init/error", header, "").Body.Close()
		time.Sleep(time.Hour)
	}
	for loop(name, id) {
	}
}

// loop takes an event and tells whether to go on.
func loop(name, id string) bool {
	resp := call(http.MethodGet, base+"event/next", map[string]string{"Lambda-Extension-Identifier": id}, "")
	text, _ := io.ReadAll(resp.Body)
	resp.Body.Close()
	var event struct {
		EventType, RequestID, ShutdownReason string
		DeadlineMs                           int64
	}
	if err := json.Unmarshal(text, &event); err != nil {
		panic(string(text))
	}
	left := time.Until(time.UnixMilli(event.DeadlineMs)).Round(100 * time.Millisecond)
	fmt.Println(name, "saw", event.EventType, event.RequestID, event.ShutdownReason, left)
	switch {
	case event.EventType == "SHUTDOWN" && name == "stubborn":
		time.Sleep(time.Hour)
	case event.EventType == "SHUTDOWN":
		return false
	case name == "slow":
		time.Sleep(500 * time.Millisecond)
		fmt.Println("slow is done with", event.RequestID)
	case name == "crashing":
		os.Exit(5)
	case name == "giving-up":
		header := map[string]string{"Lambda-Extension-Identifier": id, "Lambda-Extension-Function-Error-Type": "Extension.Tired"}
		call(http.MethodPost, base+"exit/error", header, "").Body.Close()
		time.Sleep(time.Hour)
	}
	return true
}
