# The first instructions of the bare guest: reset vector, 16 to 32 bits, then witness_main().
#
# The guest is the machine's firmware (-bios), so it runs milliseconds after QEMU starts. The reset vector
# lies in an alias of the ROM near 4 GiB and jumps to the ROM's own place below 1 MiB at once, so that
# the code has one address. What looks odd otherwise is what a KVM that emulates every guest
# instruction needs:
#   - the descriptors have their "accessed" bit set: they lie in ROM, where the far jump would try to
#     set it, for ever;
#   - no iret, which its emulation lacks in protected mode: interrupts arrive only at the hlt in
#     wait_for_tick, whose handler throws the frame away and returns behind that hlt;
#   - no paging, no x87, no SSE.
#
# Memory: ROM f0000-fffff; stack below 80000; data at 10000 (see firmware.ld).

    .code16
    .section .text16, "ax"
    .globl entry16
entry16:
    cli
    movw %cs, %ax
    movw %ax, %ds
    lgdtl gdt_register_offset
    movl %cr0, %eax
    andl $0x9fffffff, %eax          # caches on
    orl $1, %eax                    # protection on
    movl %eax, %cr0
    ljmpl $8, $entry32

    .code32
entry32:
    movw $16, %ax
    movw %ax, %ds
    movw %ax, %es
    movw %ax, %ss
    movl $0x80000, %esp
    cld
    call witness_main               # does not return
1:  hlt
    jmp 1b

# void wait_for_tick(): sleeps until the timer interrupt. Interrupts are off everywhere else, so a
# tick that came in between is pending and ends the wait at once.
    .globl wait_for_tick
wait_for_tick:
    sti
    hlt
    # Not reached: every interrupt ends in on_tick.
    jmp wait_for_tick

    .globl on_tick
on_tick:
    movb $0x20, %al                 # end of interrupt
    outb %al, $0x20
    addl $12, %esp                  # eip, cs, eflags
    ret                             # wait_for_tick's caller; interrupts are off again

# A spurious interrupt (line 7) is not acknowledged and waits on.
    .globl on_spurious
on_spurious:
    addl $12, %esp
    jmp wait_for_tick

    .section .rodata
    .balign 8
gdt:
    .quad 0
    .quad 0x00cf9b000000ffff        # 08: flat code
    .quad 0x00cf93000000ffff        # 10: flat data
    .globl gdt_register
gdt_register:
    .word . - gdt - 1
    .long gdt

    .section .reset, "ax"
    .code16
    .byte 0xea                      # ljmp 0xf000:entry16
    .word entry16_offset
    .word 0xf000

    .section .note.GNU-stack, "", @progbits
