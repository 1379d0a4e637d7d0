//! Rows as the model gets them: `--show-rows N`.

use crate::config::RunConfig;
use crate::data::{Batch, Dataset, Loader, PADDING, Position};
use anyhow::Result;
use program::say;
use std::sync::Arc;

/// Shows the first `count` rows of the step after `step`, which begins at `position`.
pub(crate) fn rows_of_next_step(
    run: &RunConfig,
    dataset: &Arc<Dataset>,
    position: Position,
    step: u64,
    count: usize,
) -> Result<()> {
    let rows = run.data.rows(run.batch.seq, run.seed);
    let mut loader = Loader::start(Arc::clone(dataset), rows, position)?;
    let batch = loader.next_batch(run.batch.accumulation, run.batch.micro)?;
    loader.notes().for_each(|note| say!("{note}"));
    let Position { epoch, window, block, row, .. } = batch.position;
    say!(
        "rows     of step {}: {} of {}, from epoch {epoch}, window {window}, block {block}, row {row}",
        step + 1,
        count.min(run.batch.rows()),
        run.batch.rows()
    );
    say!("         ⟦ ⟧ is a special token; ‹ › is a piece's first token, which nothing predicts");
    if run.model.mtp_num_tokens > 0 {
        say!("         the second head predicts every token but the first two of a piece");
    }
    for number in 0..count.min(run.batch.rows()) {
        show(&batch, number, dataset);
    }
    if count > run.batch.rows() {
        say!("         a step has no more rows; a larger batch.micro or batch.accumulation shows more");
    }
    Ok(())
}

/// One row, piece by piece.
fn show(batch: &Batch, number: usize, dataset: &Dataset) {
    let seq = batch.shape.seq;
    let range = number * seq..(number + 1) * seq;
    let (ids, segments) = (&batch.ids[range.clone()], &batch.segments[range]);
    let pieces: Vec<&[i32]> = segments.chunk_by(|a, b| a == b).collect();
    let padding = segments.iter().filter(|segment| **segment == PADDING).count();
    let documents = pieces.iter().filter(|piece| piece[0] != PADDING).count();
    let targets = seq - padding - documents;
    say!();
    say!(
        "row {number}: {} tokens in {documents} pieces, {targets} targets, {padding} padding",
        seq - padding
    );
    let mut at = 0;
    for piece in pieces {
        let ids = &ids[at..at + piece.len()];
        at += piece.len();
        if piece[0] == PADDING {
            continue;
        }
        say!("  segment {}: {} tokens, {} targets", piece[0], ids.len(), ids.len() - 1);
        let text = match dataset.tokenizer() {
            Some(tokenizer) => format!("‹{}›{}", tokenizer.shown(&ids[..1]), tokenizer.shown(&ids[1..])),
            None => format!("{ids:?}"),
        };
        text.lines().for_each(|line| say!("    | {line}"));
    }
}
