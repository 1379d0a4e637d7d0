//! Rotary positions of one vector at a time. Source: arXiv 2104.09864 eq. 34, halves instead of pairs.

/// Rotates the halves of x `[d]` by the angles of its position, whose cos and sin `[d/2]` are given, and multiplies by
/// `scale`.
#[inline(always)]
pub(crate) fn rotate(x: &[f32], [cos, sin]: [&[f32]; 2], scale: f32, result: &mut [f32]) {
    let half = cos.len();
    let (x1, x2) = x.split_at(half);
    let (y1, y2) = result.split_at_mut(half);
    let (x2, y2, sin) = (&x2[..half], &mut y2[..half], &sin[..half]);
    for i in 0..half {
        y1[i] = (x1[i] * cos[i] - x2[i] * sin[i]) * scale;
        y2[i] = (x2[i] * cos[i] + x1[i] * sin[i]) * scale;
    }
}

/// The same by the opposite angles, in place.
#[inline(always)]
pub(crate) fn rotate_back(x: &mut [f32], [cos, sin]: [&[f32]; 2], scale: f32) {
    let half = cos.len();
    let (x1, x2) = x.split_at_mut(half);
    let (x2, sin) = (&mut x2[..half], &sin[..half]);
    for i in 0..half {
        let (a, b) = (x1[i], x2[i]);
        x1[i] = (a * cos[i] + b * sin[i]) * scale;
        x2[i] = (b * cos[i] - a * sin[i]) * scale;
    }
}
