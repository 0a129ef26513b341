package ec2sim

import (
	"crypto/rand"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/volpool/volpool/integration/ec2sim/cloud"
)

const (
	role         = "ec2sim"
	sessionToken = "ec2sim/" // and the instance's id: so a call tells who signed it
)

// IMDSFault is what may be wrong with an instance's metadata service.
type IMDSFault string

// The faults of an IMDS.
const (
	IMDSAbsent       IMDSFault = "absent" // the connection is closed without a word
	IMDSSlow         IMDSFault = "slow"   // nothing comes until the caller gives up
	IMDSUnauthorized IMDSFault = "401"
	IMDSNotFound     IMDSFault = "404"
	IMDSError        IMDSFault = "500"
	IMDSRubbish      IMDSFault = "rubbish" // 200, and what no parser wants
)

func (f IMDSFault) valid() bool {
	switch f {
	case "", IMDSAbsent, IMDSSlow, IMDSUnauthorized, IMDSNotFound, IMDSError, IMDSRubbish:
		return true
	}
	return false
}

// Metadata is an instance's IMDSv2, which alone it speaks: without a token it
// answers 401
// (https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/configuring-instance-metadata-service.html).
// It goes with the instance: one that is stopped or terminated has none.
type Metadata struct {
	sim      *Sim
	instance cloud.Instance

	mu     sync.Mutex
	paths  map[string]string // below /latest/
	tokens map[string]time.Time
	fault  IMDSFault
	calls  map[string]int
}

func newMetadata(s *Sim, i cloud.Instance) *Metadata {
	m := &Metadata{sim: s, instance: i, tokens: map[string]time.Time{}, calls: map[string]int{}}
	m.paths = map[string]string{
		"meta-data/instance-id":                 i.ID,
		"meta-data/instance-type":               i.Type,
		"meta-data/ami-id":                      i.ImageID,
		"meta-data/local-ipv4":                  i.PrivateIP,
		"meta-data/placement/availability-zone": i.Zone,
		"meta-data/placement/region":            s.cfg.Region,
		"meta-data/iam/security-credentials":    role,
		"dynamic/instance-identity/document":    m.identity(),
	}
	return m
}

func (m *Metadata) identity() string {
	return encode(map[string]any{
		"accountId": account, "architecture": "x86_64", "availabilityZone": m.instance.Zone, "imageId": m.instance.ImageID,
		"instanceId": m.instance.ID, "instanceType": m.instance.Type, "pendingTime": m.instance.LaunchTime.UTC().Format(time.RFC3339),
		"privateIp": m.instance.PrivateIP, "region": m.sim.cfg.Region, "version": "2017-09-30",
	})
}

// credentials are good for six hours, as EC2's are.
func (m *Metadata) credentials() string {
	now := time.Now().UTC()
	return encode(map[string]any{
		"Code": "Success", "LastUpdated": now.Format(time.RFC3339), "Type": "AWS-HMAC",
		"AccessKeyId": m.sim.cfg.AccessKeyID, "SecretAccessKey": "ec2sim", "Token": sessionToken + m.instance.ID,
		"Expiration": now.Add(6 * time.Hour).Format(time.RFC3339),
	})
}

func encode(v any) string {
	b, _ := json.MarshalIndent(v, "", "  ") // maps of strings always encode
	return string(b)
}

// Set gives a path below /latest/ a value, as meta-data/spot/instance-action.
func (m *Metadata) Set(path, value string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.paths[strings.Trim(path, "/")] = value
}

// Unset makes a path answer 404.
func (m *Metadata) Unset(path string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.paths, strings.Trim(path, "/"))
}

// Fail lets the service fail, until Fail("").
func (m *Metadata) Fail(f IMDSFault) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.fault = f
}

// Calls counts requests by path.
func (m *Metadata) Calls() map[string]int {
	m.mu.Lock()
	defer m.mu.Unlock()
	calls := map[string]int{}
	for path, n := range m.calls {
		calls[path] = n
	}
	return calls
}

// ServeHTTP answers as IMDS does.
func (m *Metadata) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	path, ok := strings.CutPrefix(r.URL.Path, "/latest/")
	path = strings.Trim(path, "/")
	m.mu.Lock()
	fault := m.fault
	m.calls[path]++
	m.mu.Unlock()
	if !m.alive() {
		fault = IMDSAbsent
	}
	w.Header().Set("Server", "EC2ws")
	switch {
	case fault != "":
		fail(w, r, fault)
	case !ok:
		http.NotFound(w, r)
	case path == "api/token":
		m.token(w, r)
	case r.Method != http.MethodGet:
		http.Error(w, "405 - Method Not Allowed", http.StatusMethodNotAllowed)
	case !m.knows(r.Header.Get("X-aws-ec2-metadata-token")):
		http.Error(w, "401 - Unauthorized", http.StatusUnauthorized)
	default:
		m.get(w, r, path)
	}
}

func (m *Metadata) alive() bool {
	i, ok := m.sim.Cloud.Instance(m.instance.ID)
	return ok && i.State != cloud.Stopped && i.State != cloud.Terminated
}

func fail(w http.ResponseWriter, r *http.Request, f IMDSFault) {
	switch f {
	case IMDSAbsent:
		panic(http.ErrAbortHandler)
	case IMDSSlow:
		<-r.Context().Done()
	case IMDSRubbish:
		_, _ = io.WriteString(w, "<html>\x00 this is not the metadata that you seek {")
	default:
		status, _ := strconv.Atoi(string(f))
		http.Error(w, fmt.Sprintf("%d - %s", status, http.StatusText(status)), status)
	}
}

// token gives out a session token: only for PUT, only with a TTL of 1 s to 6 h
// (400 else), and not through a proxy (403 where X-Forwarded-For is set)
// (https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/instance-metadata-v2-how-it-works.html).
func (m *Metadata) token(w http.ResponseWriter, r *http.Request) {
	const header = "X-Aws-Ec2-Metadata-Token-Ttl-Seconds"
	ttl, err := strconv.Atoi(r.Header.Get(header))
	switch {
	case r.Method != http.MethodPut:
		http.Error(w, "405 - Method Not Allowed", http.StatusMethodNotAllowed)
	case r.Header.Get("X-Forwarded-For") != "":
		http.Error(w, "403 - Forbidden", http.StatusForbidden)
	case err != nil || ttl < 1 || ttl > 21600:
		http.Error(w, "400 - Bad Request", http.StatusBadRequest)
	default:
		token := rand.Text()
		m.mu.Lock()
		m.tokens[token] = time.Now().Add(time.Duration(ttl) * time.Second)
		m.mu.Unlock()
		w.Header().Set(header, strconv.Itoa(ttl))
		_, _ = io.WriteString(w, token)
	}
}

func (m *Metadata) knows(token string) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return time.Now().Before(m.tokens[token])
}

func (m *Metadata) get(w http.ResponseWriter, r *http.Request, path string) {
	m.mu.Lock()
	value, ok := m.paths[path]
	m.mu.Unlock()
	if path == "meta-data/iam/security-credentials/"+role {
		value, ok = m.credentials(), true
	}
	if !ok {
		http.Error(w, "404 - Not Found", http.StatusNotFound)
		return
	}
	w.Header().Set("Content-Type", "text/plain")
	_, _ = io.WriteString(w, value)
}
