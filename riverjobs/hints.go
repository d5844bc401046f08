package riverjobs

import (
	"context"
	"encoding/json"
	"time"

	"github.com/riverqueue/river/riverdriver"
	"github.com/riverqueue/river/riverdriver/riverpgxv5"
)

// wary is River's driver for an own client, which is told hints alone. River takes what it hears at its word: whoever may connect
// to the database could pause our queue for as long as the processes live, cancel sweeps and have each leader resign.
type wary struct{ *riverpgxv5.Driver }

// GetListener implements riverdriver.Driver.
func (d wary) GetListener(params *riverdriver.GetListenenerParams) riverdriver.Listener {
	return &hintsOnly{Listener: d.Driver.GetListener(params)}
}

// hintsOnly passes on notifications after which River looks at its tables, and does nothing else.
type hintsOnly struct {
	riverdriver.Listener
	vacant time.Time // when River was told last that there is no leader; WaitForNotification's alone
}

// vacancyGap is how seldom River is told that there is no leader. Its leader begins to wait anew for the time to renew its
// term, 5 s, with each: told more often, it would go on leading without being it.
const vacancyGap = 15 * time.Second

// WaitForNotification implements riverdriver.Listener.
func (l *hintsOnly) WaitForNotification(ctx context.Context) (*riverdriver.Notification, error) {
	for {
		notification, err := l.Listener.WaitForNotification(ctx)
		if err != nil {
			return nil, err
		}
		payload, ok := hint(notification.Topic, notification.Payload)
		if ok && (payload != vacancy || l.vacancyDue(time.Now())) {
			return &riverdriver.Notification{Topic: notification.Topic, Payload: payload}, nil
		}
	}
}

func (l *hintsOnly) vacancyDue(now time.Time) bool {
	if now.Sub(l.vacant) < vacancyGap {
		return false // followers look every 5 s
	}
	l.vacant = now
	return true
}

// What River is told.
const (
	inserted = `{"queue":"` + Queue + `"}`
	vacancy  = `{"action":"resigned"}`
)

// hint returns what River is told of a notification, in our words, so that it reads and logs nothing of anybody else's. There is
// nothing on the channel of commands that our own client needs.
func hint(topic, payload string) (told string, ok bool) {
	var heard struct {
		Action string `json:"action"`
		Queue  string `json:"queue"`
	}
	if json.Unmarshal([]byte(payload), &heard) != nil {
		return "", false
	}
	switch {
	case topic == "river_insert" && heard.Queue == Queue:
		return inserted, true
	case topic == "river_leadership" && heard.Action == "resigned":
		return vacancy, true
	}
	return "", false
}
