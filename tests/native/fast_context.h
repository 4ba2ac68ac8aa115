// Switches between the emulation's threads without the two system calls of glibc's swapcontext, which saves the mask of
// signals too: most of an emulated kernel's time. tests/devices.py includes this file before each source.
#pragma once
#if defined(__x86_64__) && defined(__linux__)

#include <stddef.h>
#include <stdint.h>
#include <ucontext.h>

// Where a context keeps its stack pointer, under which its registers lie.
static_assert(offsetof(ucontext_t, uc_mcontext.gregs) + REG_RSP * 8 == 160, "the stack pointer's place");

// Keeps the registers that a called function must not change. The mask of signals and the rounding are never changed.
__attribute__((naked, noinline, unused)) static int fast_swapcontext(ucontext_t*, const ucontext_t*) {
  asm("pushq %rbp\n\tpushq %rbx\n\tpushq %r12\n\tpushq %r13\n\tpushq %r14\n\tpushq %r15\n\t"
      "movq %rsp, 160(%rdi)\n\tmovq 160(%rsi), %rsp\n\t"
      "popq %r15\n\tpopq %r14\n\tpopq %r13\n\tpopq %r12\n\tpopq %rbx\n\tpopq %rbp\n\t"
      "xorl %eax, %eax\n\tret");
}

__attribute__((unused)) static int fast_getcontext(ucontext_t*) { return 0; }

// The first switch to it returns into `function`, with the stack as after a call.
__attribute__((unused)) static void fast_makecontext(ucontext_t* context, void (*function)(), int) {
  const uintptr_t end = reinterpret_cast<uintptr_t>(context->uc_stack.ss_sp) + context->uc_stack.ss_size;
  uintptr_t* top = reinterpret_cast<uintptr_t*>(end & ~uintptr_t{15});
  *--top = 0;
  *--top = reinterpret_cast<uintptr_t>(function);
  for (int i = 0; i < 6; ++i) *--top = 0;
  context->uc_mcontext.gregs[REG_RSP] = static_cast<greg_t>(reinterpret_cast<uintptr_t>(top));
}

#define swapcontext fast_swapcontext
#define getcontext fast_getcontext
#define makecontext fast_makecontext

#endif
