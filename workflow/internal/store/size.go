package store

// How many bytes operations bring, names and numbers aside: the committer bounds what it sends at a time.

// Size returns how many bytes the input has.
func (s Start) Size() int { return len(s.Input) }

// Size returns how many bytes the record has.
func (a Append) Size() int { return len(a.Payload) }

// Size returns how many bytes the failure has.
func (r Retry) Size() int { return len(r.Error) }

// Size returns how many bytes the failure has.
func (f Fail) Size() int { return len(f.Payload) }

// Size returns how many bytes the message has.
func (d Deliver) Size() int { return len(d.Payload) + len(d.Metadata) }

// Size returns how many bytes the event has.
func (e SendEvent) Size() int { return len(e.Data) + len(e.Attributes) }

// Size returns how many bytes the outcome has.
func (f Finish) Size() int { return len(f.Output) + len(f.Error) }

// Size returns how many bytes the next input has.
func (c Continue) Size() int { return len(c.Input) }
