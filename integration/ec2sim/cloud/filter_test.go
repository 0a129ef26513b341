package cloud_test

import (
	"regexp"
	"strings"
	"testing"

	"github.com/volpool/volpool/integration/ec2sim/cloud"
)

func TestMatch(t *testing.T) {
	for _, c := range []struct {
		pattern, value string
		want           bool
	}{
		{"", "", true}, {"", "a", false}, {"a", "a", true}, {"a", "A", false}, {"*", "", true}, {"*", "anything", true},
		{"?", "", false}, {"?", "a", true}, {"a*c", "abbbc", true}, {"a*c", "abbb", false}, {"*a*b*", "xxaxxbxx", true},
		{"vol-*", "vol-1", true}, {`a\*`, "a*", true}, {`a\*`, "ab", false}, {`\?`, "?", true}, {`a\\b`, `a\b`, true},
		{`a\`, `a\`, true}, {"a*a*a*a*b", strings.Repeat("a", 50), false},
	} {
		if got := cloud.Match(c.pattern, c.value); got != c.want {
			t.Errorf("Match(%q, %q) = %v", c.pattern, c.value, got)
		}
	}
}

// The matcher agrees with a regular expression that says the same.
func FuzzMatch(f *testing.F) {
	f.Add("a*b?c", "axxbyc")
	f.Add(`\**\?`, "*x?")
	f.Add("**a", "aaa")
	f.Fuzz(func(t *testing.T, pattern, value string) {
		if got, want := cloud.Match(pattern, value), expression(pattern).MatchString(latin(value)); got != want {
			t.Errorf("Match(%q, %q) = %v", pattern, value, got)
		}
	})
}

func expression(pattern string) *regexp.Regexp {
	e := "^(?s:"
	for k := 0; k < len(pattern); k++ {
		switch {
		case pattern[k] == '*':
			e += ".*"
		case pattern[k] == '?':
			e += "."
		default:
			if pattern[k] == '\\' && k+1 < len(pattern) {
				k++
			}
			e += regexp.QuoteMeta(latin(pattern[k : k+1]))
		}
	}
	return regexp.MustCompile(e + ")$")
}

// latin makes each byte a character, as the matcher sees them.
func latin(s string) string {
	var b strings.Builder
	for k := range len(s) {
		b.WriteRune(rune(s[k]))
	}
	return b.String()
}
