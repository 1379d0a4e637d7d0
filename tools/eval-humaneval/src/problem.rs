//! [`Problem`]: a prompt and the tests of its completions.

/// One problem.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// `HumanEval/0`; the numbers of MBPP as text.
    pub id: String,
    /// The prompt, which a completion continues.
    pub prompt: String,
    /// A completion that is right, if the file holds one.
    pub canonical: Option<String>,
    /// The tests, which follow the completion.
    pub tests: String,
    /// The functions and classes that the tests find in it: the one of the prompt, or what the right one defines; none if
    /// that is not known.
    pub functions: Vec<String>,
}

impl Problem {
    /// The solution: the prompt and a completion that follows it.
    pub fn solution(&self, completion: &str) -> String {
        format!("{}{completion}\n", self.prompt)
    }

    /// A solution and its tests in one program.
    pub fn program(&self, solution: &str) -> String {
        format!("{solution}{}", self.tests)
    }
}
