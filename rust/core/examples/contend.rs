use youngbit_core::bench::{self, Options, Scale, Suite};
fn main() {
    let only = std::env::args().nth(1);
    let scale = match std::env::args().nth(2).as_deref() {
        Some("full") => Scale::Full,
        Some("smallest") => Scale::Smallest,
        _ => Scale::Quick,
    };
    let reps = std::env::args().nth(3).and_then(|s| s.parse().ok());
    let o = Options {
        scale,
        only,
        repetitions: reps,
        ..Options::default()
    };
    let rows = bench::run(Suite::Contention, &o, &mut |_| Ok(())).unwrap();
    let mut last = String::new();
    for r in rows {
        let head = format!("{} | {}", r.case, r.contestant);
        if head != last {
            println!("== {head}");
            println!(
                "   {:?}",
                r.counters
                    .iter()
                    .filter(|c| [
                        "mmu_lock_read",
                        "mmu_lock_write",
                        "mmu_lock_contended",
                        "mmu_lock_wait_ns",
                        "lru_lock_contended",
                        "lru_lock_wait_ns",
                        "ptl_trylock_failed",
                        "mmap_trylock_failed",
                        "folios_aged",
                        "folios_promoted",
                        "sptes_aged",
                        "spte_loads",
                        "mm_leaf_total",
                        "mm_leaf_young",
                        "mm_leaf_old"
                    ]
                    .contains(&c.0))
                    .collect::<Vec<_>>()
            );
            last = head;
        }
        print!(
            "   {:32} {:12.3e} [{:.3e} {:.3e}]",
            r.metric.name, r.median, r.min, r.max
        );
        for x in &r.ratios {
            print!(
                "  /{} {:.2} [{:.2} {:.2}]{}",
                x.to,
                x.median,
                x.min,
                x.max,
                x.bound.map_or(String::new(), |b| format!(" <= {b}"))
            );
        }
        println!();
    }
}
