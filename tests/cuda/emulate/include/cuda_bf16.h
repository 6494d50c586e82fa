#pragma once
#include "emulate_half.h"

using __nv_bfloat16 = emulate::Half<emulate::Bf16Format>;
using __nv_bfloat162 = emulate::Half2<emulate::Bf16Format>;
using nv_bfloat16 = __nv_bfloat16;
using nv_bfloat162 = __nv_bfloat162;

inline __nv_bfloat16 __float2bfloat16(float x) { return __nv_bfloat16(x); }
inline float __bfloat162float(__nv_bfloat16 x) { return float(x); }
