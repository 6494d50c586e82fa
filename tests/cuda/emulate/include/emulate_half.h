// Numbers of 16 bits for generated kernels: each operation computes in f32 and rounds once, as the instructions do.
#pragma once

#include <type_traits>

namespace emulate {

struct Bf16Format {
    static float to_f32(unsigned short bits) { return __uint_as_float(unsigned(bits) << 16); }
    static unsigned short from_f32(float x) {
        if (x != x) return 0x7fff;
        unsigned bits = __float_as_uint(x);
        return (unsigned short)((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
    }
};
struct F16Format {
    static float to_f32(unsigned short bits) {
        _Float16 x;
        memcpy(&x, &bits, 2);
        return float(x);
    }
    static unsigned short from_f32(float x) {
        _Float16 rounded = _Float16(x);
        unsigned short bits;
        memcpy(&bits, &rounded, 2);
        return bits;
    }
};

template <class Format> struct alignas(2) Half {
    unsigned short bits;

    Half() = default;
    template <class T, class = std::enable_if_t<std::is_arithmetic<T>::value>> Half(T x) : bits(Format::from_f32(float(x))) {}
    template <class Other, class = std::enable_if_t<!std::is_same<Other, Format>::value>>
    explicit Half(Half<Other> x) : bits(Format::from_f32(float(x))) {}
    operator float() const { return Format::to_f32(bits); }

    Half operator-() const { return Half(-float(*this)); }
    friend Half operator+(Half x, Half y) { return Half(float(x) + float(y)); }
    friend Half operator-(Half x, Half y) { return Half(float(x) - float(y)); }
    friend Half operator*(Half x, Half y) { return Half(float(x) * float(y)); }
    friend Half operator/(Half x, Half y) { return Half(float(x) / float(y)); }
    friend bool operator==(Half x, Half y) { return float(x) == float(y); }
    friend bool operator!=(Half x, Half y) { return float(x) != float(y); }
    friend bool operator<(Half x, Half y) { return float(x) < float(y); }
    friend bool operator>(Half x, Half y) { return float(x) > float(y); }
    friend bool operator<=(Half x, Half y) { return float(x) <= float(y); }
    friend bool operator>=(Half x, Half y) { return float(x) >= float(y); }
    Half &operator+=(Half y) { return *this = *this + y; }
    Half &operator-=(Half y) { return *this = *this - y; }
    Half &operator*=(Half y) { return *this = *this * y; }
    Half &operator/=(Half y) { return *this = *this / y; }
};

template <class Format> struct alignas(4) Half2 {
    Half<Format> x, y;

    Half2() = default;
    Half2(Half<Format> x, Half<Format> y) : x(x), y(y) {}
    template <class T, class = std::enable_if_t<std::is_arithmetic<T>::value>> Half2(T both) : x(both), y(both) {}
    Half2(Half<Format> both) : x(both), y(both) {}
    friend Half2 operator+(Half2 a, Half2 b) { return {a.x + b.x, a.y + b.y}; }
    friend Half2 operator-(Half2 a, Half2 b) { return {a.x - b.x, a.y - b.y}; }
    friend Half2 operator*(Half2 a, Half2 b) { return {a.x * b.x, a.y * b.y}; }
    friend Half2 operator/(Half2 a, Half2 b) { return {a.x / b.x, a.y / b.y}; }
    Half2 operator-() const { return {-x, -y}; }
};

} // namespace emulate

// h… for one number and h2… for two, from the function of f32.
#define EMULATE_HALF_FUNCTION(NAME, FUNCTION)                                                                                      \
    template <class F> inline emulate::Half<F> h##NAME(emulate::Half<F> x) { return emulate::Half<F>(FUNCTION(float(x))); }        \
    template <class F> inline emulate::Half2<F> h2##NAME(emulate::Half2<F> v) { return {h##NAME(v.x), h##NAME(v.y)}; }
EMULATE_HALF_FUNCTION(exp, expf)
EMULATE_HALF_FUNCTION(log, logf)
EMULATE_HALF_FUNCTION(sin, sinf)
EMULATE_HALF_FUNCTION(cos, cosf)
EMULATE_HALF_FUNCTION(sqrt, sqrtf)
EMULATE_HALF_FUNCTION(rsqrt, rsqrtf)
EMULATE_HALF_FUNCTION(rcp, 1.0f /)
EMULATE_HALF_FUNCTION(ceil, ceilf)
EMULATE_HALF_FUNCTION(floor, floorf)
EMULATE_HALF_FUNCTION(trunc, truncf)
EMULATE_HALF_FUNCTION(rint, rintf)
EMULATE_HALF_FUNCTION(tanh, tanhf)

template <class F> inline emulate::Half<F> __habs(emulate::Half<F> x) { return emulate::Half<F>(fabsf(float(x))); }
template <class F> inline emulate::Half<F> __hmax(emulate::Half<F> x, emulate::Half<F> y) { return emulate::Half<F>(fmaxf(float(x), float(y))); }
template <class F> inline emulate::Half<F> __hmin(emulate::Half<F> x, emulate::Half<F> y) { return emulate::Half<F>(fminf(float(x), float(y))); }
template <class F> inline emulate::Half2<F> __habs2(emulate::Half2<F> v) { return {__habs(v.x), __habs(v.y)}; }
template <class F> inline emulate::Half2<F> __hmax2(emulate::Half2<F> a, emulate::Half2<F> b) { return {__hmax(a.x, b.x), __hmax(a.y, b.y)}; }
template <class F> inline emulate::Half2<F> __hmin2(emulate::Half2<F> a, emulate::Half2<F> b) { return {__hmin(a.x, b.x), __hmin(a.y, b.y)}; }
template <class F> inline emulate::Half<F> __hfma(emulate::Half<F> x, emulate::Half<F> y, emulate::Half<F> z) {
    return emulate::Half<F>(fmaf(float(x), float(y), float(z)));
}
template <class F> inline emulate::Half2<F> __hfma2(emulate::Half2<F> a, emulate::Half2<F> b, emulate::Half2<F> c) {
    return {__hfma(a.x, b.x, c.x), __hfma(a.y, b.y, c.y)};
}
template <class F> inline bool __hisnan(emulate::Half<F> x) { return float(x) != float(x); }
template <class F> inline bool __hisinf(emulate::Half<F> x) { return isinf(float(x)); }
template <class F> inline emulate::Half<F> fma(emulate::Half<F> x, emulate::Half<F> y, emulate::Half<F> z) { return __hfma(x, y, z); }
