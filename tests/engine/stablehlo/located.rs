//! Programs of a file of their own, for their lines are in a golden file.

use engine::{Program, Type};

/// `tanh(x) + 1`
pub(crate) fn program() -> Program {
    Program::build("located", |g| {
        let x = g.input("x", Type::f32([2]));
        let y = x.tanh();
        g.output("y", y + 1.0);
    })
}

/// The same, elsewhere.
pub(crate) fn same_program() -> Program {
    Program::build("located", |f| {
        let input = f.input("x", Type::f32([2]));
        f.output("y", input.tanh() + 1.0);
    })
}
