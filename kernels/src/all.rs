//! [`all`]: the list of kernels, which tests, the compile check for the v6e and the tables walk.

use crate::{
    cached_attention, cached_block, cross_entropy, diff_attention, packed_linear, rms_norm_linear, row_dot,
    sampling, swiglu,
};
use engine::{Kernel, Target, Type};
use std::sync::Arc;

/// A kernel with arguments to try it with.
#[derive(Clone, Debug)]
pub struct Example {
    /// The kernel.
    pub kernel: Arc<dyn Kernel>,
    /// Types of its arguments, and which numbers they may hold.
    pub args: Vec<(Type, Values)>,
    /// The arguments that a model takes gradients of.
    pub wrt: Vec<usize>,
    /// The targets on which these arguments have a native form, if one is asked for.
    pub native: Vec<Target>,
}

/// Numbers that an argument may hold.
#[derive(Clone, Debug, PartialEq)]
pub enum Values {
    /// Any between two.
    Between(f64, f64),
    /// These, one for each element.
    Given(Vec<f64>),
}

/// Around zero, of the size of activations.
pub(crate) const ACTIVATIONS: Values = Values::Between(-1.5, 1.5);

/// At least one example of every kernel that a model calls; those that only gradients call come with theirs. A kernel is
/// covered as soon as its examples are listed here.
pub fn all() -> Vec<Example> {
    [
        diff_attention::examples(),
        cached_attention::examples(),
        cached_block::examples(),
        packed_linear::examples(),
        sampling::examples(),
        swiglu::examples(),
        rms_norm_linear::examples(),
        row_dot::examples(),
        cross_entropy::examples(),
    ]
    .concat()
}

impl Example {
    pub(crate) fn new(
        kernel: impl Kernel + 'static,
        args: Vec<(Type, Values)>,
        wrt: &[usize],
        native: &[Target],
    ) -> Example {
        Example { kernel: Arc::new(kernel), args, wrt: wrt.to_vec(), native: native.to_vec() }
    }

    /// The kernel's name without its attributes, `diff_attention`.
    pub fn name(&self) -> String {
        let name = self.kernel.name();
        name.split_once('(').map_or(name.clone(), |(name, _)| name.to_owned())
    }
}
