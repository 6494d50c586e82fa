//! Tokens and their biases on the CPU, each in one pass: the same values as the composed operations, to the bit.

use burn_flex::FlexTensor;
use rayon::prelude::*;

use super::{TokenChoice, TokenParts};
use crate::flex::{integers, owned, tensor, view};
use crate::memory::Buffer;
use crate::slices::add_rows;

/// `[B, N+1, D]`.
pub(super) fn embed_tokens(parts: TokenParts<FlexTensor>) -> FlexTensor {
    let (patches, cls) = (owned(parts.patches), owned(parts.cls));
    let masked = parts.masked.map(|(mask, token)| (owned(mask), owned(token)));
    let masked = masked.as_ref().map(|(mask, token)| (view(mask), view(token)));
    let positions = parts.positions.map(owned);
    let positions = positions.as_ref().map(view);
    let shape = patches.layout().shape();
    let (batch, count, width) = (shape[0], shape[1], shape[2]);
    let mut tokens = Buffer::any(batch * (count + 1) * width);
    let (from, cls) = (view(&patches), view(&cls));
    tokens.par_chunks_mut(((count + 1) * width).max(1)).enumerate().for_each(|(sample, tokens)| {
        let (first, others) = tokens.split_at_mut(width);
        first.copy_from_slice(cls);
        let from = &from[sample * count * width..(sample + 1) * count * width];
        match masked {
            None => others.copy_from_slice(from),
            Some((mask, token)) => {
                let rows = others.chunks_exact_mut(width.max(1)).zip(from.chunks_exact(width.max(1)));
                for ((y, x), &m) in rows.zip(&mask[sample * count..(sample + 1) * count]) {
                    for ((y, x), t) in y.iter_mut().zip(x).zip(token) {
                        *y = x * (-m + 1.0) + m * t;
                    }
                }
            }
        }
        if let Some(positions) = positions {
            add_rows(positions, tokens);
        }
    });
    tensor(tokens, [batch, count + 1, width])
}

/// The chosen tokens as places, all of them below `tokens`.
fn places(choice: &TokenChoice<burn::backend::Flex>, tokens: usize) -> Vec<usize> {
    let place = |token: i64| match usize::try_from(token) {
        Ok(token) if token < tokens => token,
        _ => panic!("gather_bias: there is no token {token} among {tokens}"),
    };
    integers(&choice.local).into_iter().map(place).collect()
}

/// `[1, H, T, K]` → `[B, H, R, K]`.
pub(super) fn gather_bias(bias: FlexTensor, choice: TokenChoice<burn::backend::Flex>) -> FlexTensor {
    let bias = owned(bias);
    let shape = bias.layout().shape();
    let (heads, tokens, keys) = (shape[1], shape[2], shape[3]);
    let (places, per_sample) = (places(&choice, tokens), choice.per_sample);
    let batch = places.len().checked_div(per_sample).unwrap_or(0);
    let mut taken = Buffer::any(places.len() * heads * keys);
    let all = view(&bias);
    // Rows of one head of one sample.
    taken.par_chunks_mut((per_sample * keys).max(1)).enumerate().for_each(|(at, rows)| {
        let (sample, head) = (at / heads, at % heads);
        let chosen = &places[sample * per_sample..(sample + 1) * per_sample];
        for (row, token) in rows.chunks_exact_mut(keys).zip(chosen) {
            let from = (head * tokens + token) * keys;
            row.copy_from_slice(&all[from..from + keys]);
        }
    });
    tensor(taken, [batch, heads, per_sample, keys])
}

/// The gradient of `[B, H, R, K]` → that of `[1, H, T, K]`: sums over the samples in order.
pub(super) fn gather_bias_backward(
    grad: FlexTensor,
    choice: TokenChoice<burn::backend::Flex>,
    tokens: usize,
) -> FlexTensor {
    let grad = owned(grad);
    let shape = grad.layout().shape();
    let (heads, per_sample, keys) = (shape[1], shape[2], shape[3]);
    let places = places(&choice, tokens);
    let mut sums = Buffer::zeros(heads * tokens * keys);
    let all = view(&grad);
    sums.par_chunks_mut((tokens * keys).max(1)).enumerate().for_each(|(head, sums)| {
        for (at, token) in places.iter().enumerate() {
            let (sample, row) = (at / per_sample, at % per_sample);
            let from = ((sample * heads + head) * per_sample + row) * keys;
            add_rows(&all[from..from + keys], &mut sums[token * keys..(token + 1) * keys]);
        }
    });
    tensor(sums, [1, heads, tokens, keys])
}

#[cfg(test)]
mod tests {
    use burn::backend::{Autodiff, Flex};
    use burn::tensor::{Int, Tensor, TensorData};

    use super::super::{TokenChoice, TokenParts, composed, embed_tokens, gather_bias};
    use crate::tensor::{unwrap, wrap};
    use crate::testing::random;

    type X<const D: usize> = Tensor<Flex, D>;

    fn values<const D: usize>(shape: [usize; D], seed: u64) -> X<D> {
        let data = TensorData::new(random(shape.iter().product(), seed, 1.0), shape).convert::<f32>();
        Tensor::from_data(data, &Default::default())
    }

    #[test]
    fn tokens_have_the_bits_of_the_composed_operation() {
        let (batch, count, width) = (3, 5, 7);
        let mask = values([batch, count, 1], 1).greater_elem(0.0).float();
        for (masked, positions) in [(false, false), (false, true), (true, false), (true, true)] {
            let masked = masked.then(|| (mask.clone(), values([1, 1, width], 3)));
            let positions = positions.then(|| values([1, count + 1, width], 4));
            let (patches, cls) = (values([batch, count, width], 2), values([1, 1, width], 5));
            let whole = TokenParts {
                patches: unwrap(patches.clone()),
                cls: unwrap(cls.clone()),
                masked: masked.clone().map(|(mask, token)| (unwrap(mask), unwrap(token))),
                positions: positions.clone().map(unwrap),
            };
            let one_pass = embed_tokens(patches, cls, masked, positions);
            let composed: X<3> = wrap(composed::embed_tokens::<Flex>(whole));
            one_pass.into_data().assert_eq(&composed.into_data(), true);
        }
    }

    #[test]
    fn biases_of_some_tokens_and_their_gradient_have_the_bits_of_the_composed_operation() {
        type A = Autodiff<Flex>;
        let (heads, tokens, keys, per_sample) = (2, 5, 19, 3);
        let chosen: Vec<i32> = vec![0, 2, 4, 4, 1, 0, 3, 2, 1, 2, 3, 4];
        let choice = TokenChoice::<Flex> {
            local: Tensor::<Flex, 1, Int>::from_ints(chosen.as_slice(), &Default::default()).into_primitive(),
            per_sample,
        };
        // A part of a larger tensor, as biases of one layer may be.
        let bias = values([1, heads + 1, tokens, keys], 1).narrow(1, 1, heads);
        let grad = values([chosen.len() / per_sample, heads, per_sample, keys], 2);
        let composed: X<4> = wrap(composed::gather_bias::<Flex>(unwrap(bias.clone()), choice.clone()));
        let slopes: X<4> =
            wrap(composed::gather_bias_backward::<Flex>(unwrap(grad.clone()), choice.clone(), tokens));
        let leaf = Tensor::<A, 4>::from_inner(bias).require_grad();
        let outer = TokenChoice::<A> { local: choice.local, per_sample };
        let taken = gather_bias(leaf.clone(), outer);
        taken.clone().inner().into_data().assert_eq(&composed.into_data(), true);
        let found = leaf.grad(&(taken * Tensor::from_inner(grad)).sum().backward()).unwrap();
        found.into_data().assert_eq(&slopes.into_data(), true);
    }
}
