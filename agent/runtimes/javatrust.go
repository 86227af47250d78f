package runtimes

import (
	"bytes"
	"context"
	"crypto/sha1" //nolint:gosec // the format's own checksum; Java reads these files without a password and doesn't look at it
	"encoding/binary"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"unicode/utf16"
)

// javaTrustFile is where Debian's Java looks for CAs.
const javaTrustFile = "etc/ssl/certs/java/cacerts"

// installJavaTrust does what ca-certificates-java would, but for the time in each entry.
func (f finisher) installJavaTrust(context.Context) error {
	if !f.recipe.JavaTrust {
		return nil
	}
	files, err := filepath.Glob(f.path("usr/share/ca-certificates/mozilla/*.crt")) // sorted
	if err != nil {
		return err
	}
	store := javaTrust{}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		block, _ := pem.Decode(text)
		if block == nil {
			return fmt.Errorf("%s is no PEM", file)
		}
		store.add(strings.ToLower(strings.TrimSuffix(filepath.Base(file), ".crt")), block.Bytes)
	}
	dir := filepath.Dir(f.path(javaTrustFile))
	return errors.Join(os.MkdirAll(dir, 0o755), os.Chmod(dir, 0o755), os.WriteFile(f.path(javaTrustFile), store.bytes(), 0o644))
}

// javaTrust makes a Java key store (JKS, version 2) of certificates.
type javaTrust struct {
	entries bytes.Buffer
	count   uint32
}

const (
	jksMagic       = 0xfeedfeed
	jksVersion     = 2
	jksTrustedCert = 2
	// jksPassword is everybody's, and only for the checksum.
	jksPassword = "changeit"
	jksSalt     = "Mighty Aphrodite"
)

func (j *javaTrust) add(alias string, der []byte) {
	b := binary.BigEndian.AppendUint32(nil, jksTrustedCert)
	b = appendJavaUTF(b, alias)
	b = binary.BigEndian.AppendUint64(b, uint64(imageTime().UnixMilli()))
	b = appendJavaUTF(b, "X.509")
	b = binary.BigEndian.AppendUint32(b, uint32(len(der))) // certificates are small
	j.entries.Write(append(b, der...))
	j.count++
}

// appendJavaUTF appends a string without NUL and characters beyond the first plane, as java.io.DataOutput has it.
func appendJavaUTF(b []byte, s string) []byte {
	return append(binary.BigEndian.AppendUint16(b, uint16(len(s))), s...)
}

func (j *javaTrust) bytes() []byte {
	b := binary.BigEndian.AppendUint32(nil, jksMagic)
	b = binary.BigEndian.AppendUint32(b, jksVersion)
	b = binary.BigEndian.AppendUint32(b, j.count)
	b = append(b, j.entries.Bytes()...)
	var salted []byte
	for _, c := range utf16.Encode([]rune(jksPassword)) {
		salted = binary.BigEndian.AppendUint16(salted, c)
	}
	salted = append(append(salted, jksSalt...), b...)
	sum := sha1.Sum(salted) //nolint:gosec // see the import
	return append(b, sum[:]...)
}
