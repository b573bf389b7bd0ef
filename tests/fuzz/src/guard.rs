// SPDX-License-Identifier: GPL-2.0

//! Accesses to memory that may not be there: a fault that cannot be served makes them fail.

use std::arch::global_asm;

// Each function has one instruction that may fault, between the two labels; the handler of the signal
// goes on behind it, with what the function returns then. (On 64-bit Arm that of a copy may be either of two.)
#[cfg(target_arch = "x86_64")]
global_asm!(
    ".pushsection .text.fuzz_guard,\"ax\",@progbits",
    ".globl fuzz_guard_begin, fuzz_guard_end, fuzz_guard_failed, fuzz_load, fuzz_store, fuzz_copy, fuzz_fill",
    "fuzz_load:",
    "xor eax, eax",
    "fuzz_guard_begin:",
    "mov ecx, dword ptr [rdi]",
    "ret",
    "fuzz_store:",
    "mov dword ptr [rdi], esi",
    "xor eax, eax",
    "ret",
    "fuzz_copy:",
    "mov rcx, rdx",
    "rep movsb",
    "xor eax, eax",
    "ret",
    "fuzz_fill:",
    "mov rcx, rdx",
    "mov eax, esi",
    "rep stosb",
    "xor eax, eax",
    "ret",
    "fuzz_guard_end:",
    "fuzz_guard_failed:",
    "mov eax, 1",
    "ret",
    ".popsection",
);
#[cfg(target_arch = "aarch64")]
global_asm!(
    ".pushsection .text.fuzz_guard,\"ax\",@progbits",
    ".globl fuzz_guard_begin, fuzz_guard_end, fuzz_guard_failed, fuzz_load, fuzz_store, fuzz_copy, fuzz_fill",
    "fuzz_load:",
    "fuzz_guard_begin:",
    "ldr w1, [x0]",
    "mov w0, #0",
    "ret",
    "fuzz_store:",
    "str w1, [x0]",
    "mov w0, #0",
    "ret",
    "fuzz_copy:",
    "cbz x2, 2f",
    "ldrb w3, [x1], #1",
    "strb w3, [x0], #1",
    "sub x2, x2, #1",
    "b fuzz_copy",
    "2:",
    "mov w0, #0",
    "ret",
    "fuzz_fill:",
    "cbz x2, 3f",
    "strb w1, [x0], #1",
    "sub x2, x2, #1",
    "b fuzz_fill",
    "3:",
    "mov w0, #0",
    "ret",
    "fuzz_guard_end:",
    "fuzz_guard_failed:",
    "mov w0, #1",
    "ret",
    ".popsection",
);

extern "C" {
    static fuzz_guard_begin: u8;
    static fuzz_guard_end: u8;
    static fuzz_guard_failed: u8;
    fn fuzz_load(address: u64) -> u32;
    fn fuzz_store(address: u64, value: u32) -> u32;
    fn fuzz_copy(to: u64, from: *const u8, length: usize) -> u32;
    fn fuzz_fill(to: u64, value: u32, length: usize) -> u32;
}

/// Catches the faults of this process from now on.
pub fn install() {
    for signal in [libc::SIGSEGV, libc::SIGBUS] {
        let action = libc::sigaction {
            sa_sigaction: on_fault as *const () as usize,
            // SAFETY: a set of signals is plain integers, and all zeroes is the empty one.
            sa_mask: unsafe { std::mem::zeroed() },
            sa_flags: libc::SA_SIGINFO | libc::SA_NODEFER,
            sa_restorer: None,
        };
        // SAFETY: the handler is a function of the kind that `SA_SIGINFO` asks for, and lives for ever.
        unsafe { libc::sigaction(signal, &action, std::ptr::null_mut()) };
    }
}

extern "C" fn on_fault(
    signal: libc::c_int,
    _info: *mut libc::siginfo_t,
    context: *mut libc::c_void,
) {
    // SAFETY: the kernel gives a handler of `SA_SIGINFO` the context of the thread, which is no one else's.
    let context = unsafe { &mut *context.cast::<libc::ucontext_t>() };
    #[cfg(target_arch = "x86_64")]
    let at = &mut context.uc_mcontext.gregs[libc::REG_RIP as usize];
    #[cfg(target_arch = "aarch64")]
    let at = &mut context.uc_mcontext.pc;
    let begin = &raw const fuzz_guard_begin as _;
    let end = &raw const fuzz_guard_end as _;
    if (begin..end).contains(at) {
        // The stack and the register with the return address are as at the function's start.
        *at = &raw const fuzz_guard_failed as _;
        return;
    }
    // SAFETY: the process dies of the signal when the handler returns and the access is tried again.
    unsafe { libc::signal(signal, libc::SIG_DFL) };
}

/// Reads a word; says whether there was one.
pub fn load(address: u64) -> bool {
    // SAFETY: the value is not used, and an access that fails is caught.
    unsafe { fuzz_load(address) == 0 }
}

/// Writes a word.
///
/// # Safety
///
/// Nobody of this program's may rely on what is at the address.
pub unsafe fn store(address: u64, value: u32) -> bool {
    // SAFETY: an access that fails is caught; the caller answers for others.
    unsafe { fuzz_store(address, value) == 0 }
}

/// Writes bytes; after a failure some of them may be there.
///
/// # Safety
///
/// As for [`store`].
pub unsafe fn write(address: u64, bytes: &[u8]) -> bool {
    // SAFETY: as in `store`.
    unsafe { fuzz_copy(address, bytes.as_ptr(), bytes.len()) == 0 }
}

/// Reads as many bytes as `bytes` has.
pub fn read(address: u64, bytes: &mut [u8]) -> bool {
    let from = std::ptr::with_exposed_provenance(address as usize);
    // SAFETY: the bytes are borrowed for writing; an access to `from` that fails is caught.
    unsafe { fuzz_copy(bytes.as_mut_ptr() as u64, from, bytes.len()) == 0 }
}

/// Writes the same byte so many times.
///
/// # Safety
///
/// As for [`store`].
pub unsafe fn fill(address: u64, value: u8, length: usize) -> bool {
    // SAFETY: as in `store`.
    unsafe { fuzz_fill(address, value.into(), length) == 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_access_to_nothing_fails_and_all_goes_on() {
        install();
        let mut word = 7u32;
        let address = (&raw mut word) as u64;
        assert!(load(address) && !load(64) && !load(u64::MAX - 2));
        // SAFETY: the word is this test's, and nothing is at the other addresses.
        unsafe {
            assert!(store(address, 9) && !store(64, 9));
            assert!(!write(64, &[1, 2]) && !fill(64, 1, 8));
            assert!(write(address, &10u32.to_ne_bytes()));
        }
        let mut bytes = [0; 4];
        assert!(read(address, &mut bytes) && !read(64, &mut bytes));
        assert_eq!(u32::from_ne_bytes(bytes), 10);
        // SAFETY: as above.
        assert!(unsafe { fill(address, 1, 4) });
        assert!(read(address, &mut bytes));
        assert_eq!(bytes, [1; 4]);
    }
}
