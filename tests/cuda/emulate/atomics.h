// Atomic operations. One fibre runs at a time, so plain reads and writes are atomic; each returns the old value.
#pragma once

#define EMULATE_ATOMIC(NAME, RESULT)                                                                                               \
    template <class T, class U> inline T NAME(T *at, U operand) {                                                                  \
        T old = *at, value = T(operand);                                                                                           \
        *at = RESULT;                                                                                                              \
        return old;                                                                                                                \
    }

EMULATE_ATOMIC(atomicAdd, T(old + value))
EMULATE_ATOMIC(atomicSub, T(old - value))
EMULATE_ATOMIC(atomicExch, value)
EMULATE_ATOMIC(atomicMin, value < old ? value : old)
EMULATE_ATOMIC(atomicMax, value > old ? value : old)
EMULATE_ATOMIC(atomicAnd, T(old & value))
EMULATE_ATOMIC(atomicOr, T(old | value))
EMULATE_ATOMIC(atomicXor, T(old ^ value))
EMULATE_ATOMIC(atomicInc, old >= value ? T(0) : T(old + 1))
EMULATE_ATOMIC(atomicDec, old == 0 || old > value ? value : T(old - 1))

template <class T, class U, class V> inline T atomicCAS(T *at, U expected, V desired) {
    T old = *at;
    if (old == T(expected)) *at = T(desired);
    return old;
}
