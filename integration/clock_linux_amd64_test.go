package integration_test

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"strings"
	"syscall"
	"time"
)

const canSetClock = true

// setClock makes this process's wall clock wrong by so many seconds, for good; the monotonic clock goes on as before. No
// namespace and no preloaded library can do that to a Go program, which asks the kernel's vDSO: so the function there is
// overwritten, in this process's private copy, by one that asks the kernel itself and adds the error.
func setClock(wrongBy time.Duration) error {
	memory, err := os.OpenFile("/proc/self/mem", os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer memory.Close()
	from, image, err := readVDSO(memory)
	if err != nil {
		return err
	}
	library, err := elf.NewFile(bytes.NewReader(image))
	if err != nil {
		return err
	}
	symbols, err := library.DynamicSymbols()
	if err != nil {
		return err
	}
	code := []byte{0xb8} // mov eax, SYS_clock_gettime
	code = binary.LittleEndian.AppendUint32(code, syscall.SYS_CLOCK_GETTIME)
	code = append(code,
		0x0f, 0x05, // syscall
		0x85, 0xff, // test edi, edi: is it CLOCK_REALTIME?
		0x75, 0x07, // jne ret
		0x48, 0x81, 0x06) // add qword ptr [rsi], seconds
	code = binary.LittleEndian.AppendUint32(code, uint32(int32(wrongBy/time.Second)))
	code = append(code, 0xc3) // ret
	for _, symbol := range symbols {
		if symbol.Name == "__vdso_clock_gettime" && symbol.Size >= uint64(len(code)) {
			before := time.Now()
			if _, err := memory.WriteAt(code, from+int64(symbol.Value)); err != nil {
				return err
			}
			// Round strips the monotonic reading.
			if moved := time.Now().Round(0).Sub(before.Round(0)); (moved - wrongBy).Abs() > time.Minute {
				return fmt.Errorf("the clock moved by %s, want %s", moved, wrongBy)
			}
			return nil
		}
	}
	return errors.New("the vDSO has no clock_gettime")
}

func readVDSO(memory *os.File) (from int64, image []byte, err error) {
	maps, err := os.ReadFile("/proc/self/maps")
	if err != nil {
		return 0, nil, err
	}
	for line := range strings.Lines(string(maps)) {
		if !strings.HasSuffix(line, "[vdso]\n") {
			continue
		}
		var to int64
		if _, err := fmt.Sscanf(line, "%x-%x", &from, &to); err != nil {
			return 0, nil, err
		}
		image = make([]byte, to-from)
		_, err := memory.ReadAt(image, from)
		return from, image, err
	}
	return 0, nil, errors.New("this process has no vDSO")
}
