//! Throwaway: how whole rearranged pieces are.
use std::sync::Arc;
use train::data::*;
fn main() {
    let dir = std::env::args().nth(1).unwrap();
    let dataset = Arc::new(Dataset::open(dir.as_ref(), 4096, 0.0).unwrap());
    let t = dataset.tokenizer().unwrap().clone();
    let [pre, mid, suf] = [FIM_PREFIX, FIM_MIDDLE, FIM_SUFFIX].map(|m| t.find_special(m).unwrap());
    let end = dataset.end_of_text();
    for packing in [Packing::BestFit, Packing::Sequential] {
        for seq in [128, 512, 1024, 2048] {
            let rate: f64 = std::env::args().nth(2).map_or(0.5, |r| r.parse().unwrap());
            let o = RowOptions {
                seq,
                packing,
                order: Order::Shuffled,
                fim_rate: rate,
                fim_spm_rate: 0.1,
                seed: 0,
                max_bad_row_groups: 0,
                window_tokens: 1 << 24,
            };
            let start = std::time::Instant::now();
            let mut l = Loader::start(dataset.clone(), o.clone(), Position::default()).unwrap();
            let (mut rows, mut pieces, mut marked, mut whole, mut middle, mut in_whole, mut pad, mut frag) =
                (0u64, 0u64, 0u64, 0u64, 0u64, 0u64, 0u64, 0u64);
            // state of the document that goes on over pieces, by order of pieces in rows: middles are counted behind a middle mark or, in a piece without marks before, unknown
            let mut all_middle_marks = 0u64;
            while l.position().epoch == 0 {
                let b = l.next_batch(1, 1).unwrap();
                rows += 1;
                pad += b.segments.iter().filter(|s| **s == PADDING).count() as u64;
                for s in b.segments.chunk_by(|a, b| a == b).scan(0, |at, c| {
                    let r = *at..*at + c.len();
                    *at = r.end;
                    Some((c[0], r))
                }) {
                    let (seg, r) = s;
                    if seg == PADDING {
                        continue;
                    }
                    let ids = &b.ids[r];
                    pieces += 1;
                    frag += u64::from(ids.len() < 16);
                    let has = |m| ids.contains(&m);
                    if has(mid) {
                        all_middle_marks += 1;
                    }
                    if has(pre) || has(mid) || has(suf) {
                        marked += 1;
                        let ok = ids[0] == pre && has(mid) && has(suf) && *ids.last().unwrap() == end;
                        whole += u64::from(ok);
                    }
                    if let Some(at) = ids.iter().position(|i| *i == mid) {
                        let n = (ids.len() - at - 1) as u64;
                        middle += n;
                        if ids[0] == pre && has(suf) && *ids.last().unwrap() == end {
                            in_whole += n;
                        }
                    }
                }
            }
            println!(
                "{packing:?} seq {seq}: {rows} rows, {pieces} pieces ({frag} < 16 tokens), with a mark {marked}, whole {whole} ({:.1} %), middle tokens behind their mark {middle}, in whole {in_whole} ({:.1} %), middle marks {all_middle_marks}, padding {:.3} %, {:.1} s",
                100.0 * whole as f64 / marked as f64,
                100.0 * in_whole as f64 / middle as f64,
                100.0 * pad as f64 / (rows * seq as u64) as f64,
                start.elapsed().as_secs_f64()
            );
        }
    }
}
