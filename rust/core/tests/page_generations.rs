//! Which generation each page of a range is in, against the aging rules.

use youngbit_core::lru_gen::{age, page_generations};
use youngbit_core::mm::{Kind, PAGE_SIZE, VmFlags};
use youngbit_core::{Cpu, Host, HostConfig};

#[test]
fn pages_are_reported_in_the_generation_that_aging_put_them_in() {
    let host = Host::new(&HostConfig {
        nodes: vec![1024],
        swap_pages: 0,
        virtual_clock: true,
    })
    .expect("a valid host");
    let cpu = Cpu::new(&host);
    let memcg = host.create_memcg("/test").expect("memcg");
    let mm = host.create_mm(memcg.id).expect("mm");
    let space = host.create_space(Kind::Anon, 0);
    let at = mm
        .mmap(None, 8 * PAGE_SIZE, &space, 0, VmFlags::default())
        .expect("mapped");
    let touch = |page: u64| {
        mm.touch(&cpu, at + page * PAGE_SIZE, true, None)
            .expect("touched")
    };
    let seqs = || page_generations(&cpu, &mm, at, 8);
    let pass = || {
        age(&cpu, &memcg, 0, true, true).expect("aged");
    };
    (0..4).for_each(touch);
    assert_eq!(seqs(), [3, 3, 3, 3, -1, -1, -1, -1]);
    pass();
    // Born accessed: found young, and moved to what was the youngest.
    assert_eq!(seqs(), [3, 3, 3, 3, -1, -1, -1, -1]);
    touch(1);
    touch(4);
    pass();
    assert_eq!(seqs(), [3, 4, 3, 3, 4, -1, -1, -1]);
    pass();
    pass();
    // The oldest generation folds into the next.
    assert_eq!(seqs(), [4, 4, 4, 4, 4, -1, -1, -1]);
}
