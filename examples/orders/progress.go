package main

import (
	"fmt"
	"io"
	"os"
	"strings"
	"time"
)

const (
	barWidth     = 40
	lineInterval = time.Second
)

// progress shows how far the runs are: a bar that moves on a terminal, a line a second elsewhere.
type progress struct {
	out      io.Writer
	terminal bool
	started  time.Time
	last     time.Time
	finished bool // all runs have ended, and that has been shown
	drawn    bool
}

func newProgress(out io.Writer, started time.Time) *progress {
	return &progress{out: out, terminal: isTerminal(out), started: started}
}

func isTerminal(out io.Writer) bool {
	file, ok := out.(*os.File)
	if !ok {
		return false
	}
	info, err := file.Stat()
	return err == nil && info.Mode()&os.ModeCharDevice != 0
}

func (p *progress) show(s state) {
	finished := s.ended() == s.total
	if !p.terminal {
		if time.Since(p.last) < lineInterval && finished == p.finished {
			return
		}
		p.last, p.finished = time.Now(), finished
		fmt.Fprintf(p.out, "%5.1f s  %3d of %d runs ended: %d shipped, %d compensated; %d waiting, %d events to send\n",
			time.Since(p.started).Seconds(), s.ended(), s.total, s.Completed, s.Failed, s.Waiting, s.OutboxPending)
		return
	}
	filled := barWidth * s.ended() / max(1, s.total)
	fmt.Fprintf(p.out, "\r\x1b[K[%s%s] %d/%d  %d shipped, %d compensated, %d waiting, %d events to send  %.0f s",
		strings.Repeat("#", filled), strings.Repeat(".", barWidth-filled), s.ended(), s.total, s.Completed, s.Failed, s.Waiting,
		s.OutboxPending, time.Since(p.started).Seconds())
	p.drawn = true
}

// sayf writes a line of its own.
func (p *progress) sayf(format string, args ...any) {
	p.clear()
	fmt.Fprintf(p.out, "%5.1f s  ** %s\n", time.Since(p.started).Seconds(), fmt.Sprintf(format, args...))
}

func (p *progress) clear() {
	if p.drawn {
		fmt.Fprint(p.out, "\r\x1b[K")
		p.drawn = false
	}
}

// end leaves the bar where it is.
func (p *progress) end() {
	if p.drawn {
		fmt.Fprintln(p.out)
	}
}
