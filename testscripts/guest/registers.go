package guest

import (
	"bytes"
	"fmt"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// narrowRegisters says whether user-mode Linux must be kept from the extended
// register state: its buffer holds 2,696 bytes (arch/x86/um/user-offsets.c in
// Linux 6.1), AMX tile data alone are 8,192, and the host refuses to set less
// than all of it (xstateregs_set in arch/x86/kernel/fpu/regset.c).
func narrowRegisters() bool {
	info, err := os.ReadFile("/proc/cpuinfo")
	return err == nil && bytes.Contains(info, []byte(" amx_tile"))
}

// narrowEnv are kernel arguments; the kernel puts what it does not know into
// the environment of the first process.
var narrowEnv = [...]string{
	"GODEBUG=cpu.all=off",
	"GLIBC_TUNABLES=glibc.cpu.hwcaps=-AVX,-AVX2,-AVX512F,-AVX512VL,-AVX512BW",
}

const (
	ntX86Xstate   = 0x202 // NT_X86_XSTATE, linux/elf.h
	seccompDataNr = 0     // offsets in struct seccomp_data, little-endian
	seccompArg0   = 16    // of ptrace: the request
	seccompArg2   = 32    // of ptrace: the kind of registers
)

// hideXstate makes ptrace(PTRACE_GETREGSET, pid, NT_X86_XSTATE) fail with
// EINVAL for the calling thread and what it starts. User-mode Linux tries it
// once at start and uses PTRACE_GETFPREGS from then on when it fails
// (arch/x86/um/os-Linux/registers.c). The thread must be locked and never
// given back.
func hideXstate() error {
	load := func(off uint32) unix.SockFilter {
		return unix.SockFilter{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: off}
	}
	// A test that does not hold jumps to the last instruction.
	equal := func(v uint32, toEnd uint8) unix.SockFilter {
		return unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, Jf: toEnd, K: v}
	}
	filter := []unix.SockFilter{
		load(seccompDataNr), equal(unix.SYS_PTRACE, 5),
		load(seccompArg0), equal(unix.PTRACE_GETREGSET, 3),
		load(seccompArg2), equal(ntX86Xstate, 1),
		{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ERRNO | uint32(unix.EINVAL)},
		{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ALLOW},
	}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("prctl no_new_privs: %w", err)
	}
	prog := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	if _, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, 0, uintptr(unsafe.Pointer(&prog))); errno != 0 {
		return fmt.Errorf("seccomp: %w", errno)
	}
	return nil
}
