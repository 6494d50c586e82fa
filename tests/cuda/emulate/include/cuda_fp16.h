#pragma once
#include "emulate_half.h"

using __half = emulate::Half<emulate::F16Format>;
using __half2 = emulate::Half2<emulate::F16Format>;
using half = __half;
using half2 = __half2;

inline __half __float2half(float x) { return __half(x); }
inline float __half2float(__half x) { return float(x); }
