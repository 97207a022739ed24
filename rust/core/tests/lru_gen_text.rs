//! The text interface: layout, commands, and what real kernels printed.

mod budget;

use proptest::prelude::*;
use std::sync::Arc;
use youngbit_core::lru_gen::histogram::{self, Letters};
use youngbit_core::lru_gen::{Asking, age, caps, debugfs};
use youngbit_core::mm::{Kind, Memcg, Mm, PAGE_SIZE, VmFlags};
use youngbit_core::scenario::{Recording, parse};
use youngbit_core::{Cpu, Errno, Host, HostConfig};

fn machine() -> (Arc<Host>, Arc<Memcg>, Arc<Mm>) {
    let host = Host::new(&HostConfig {
        nodes: vec![4096, 64],
        swap_pages: 1024,
        virtual_clock: true,
    })
    .expect("a valid host");
    let memcg = host.create_memcg("user.slice/vm 1").expect("memcg");
    let mm = host.create_mm(memcg.id).expect("mm");
    (host, memcg, mm)
}

fn populate(host: &Arc<Host>, mm: &Arc<Mm>, kind: Kind, pages: u64) {
    let cpu = Cpu::new(host);
    let space = host.create_space(kind, pages);
    let at = mm
        .mmap(None, pages * PAGE_SIZE, &space, 0, VmFlags::default())
        .expect("mapped");
    for n in 0..pages {
        mm.touch(&cpu, at + n * PAGE_SIZE, true, None)
            .expect("touched");
    }
}

#[test]
fn lru_gen_is_printed_as_the_kernel_prints_it() {
    let (host, memcg, mm) = machine();
    populate(&host, &mm, Kind::Anon, 40);
    populate(&host, &mm, Kind::File, 7);
    host.clock.advance_ns(1_234_567_890);
    age(&Cpu::new(&host), &memcg, 0, true, true).expect("aged");
    let text = debugfs::show(&host);
    // "memcg %5hu %s", " node %5d", " %10lu %10u %10lu%c %10lu%c".
    let expected = "\
memcg     1 /
 node     0
          0       1234          0           0 
          1       1234          0           0 
          2       1234          0           0 
          3       1234          0           0 
 node     1
          0       1234          0           0 
          1       1234          0           0 
          2       1234          0           0 
          3       1234          0           0 
memcg     2 /user.slice/vm 1
 node     0
          1       1234          0           0 
          2       1234          0           0 
          3       1234         40           7 
          4          0          0           0 
 node     1
          0       1234          0           0 
          1       1234          0           0 
          2       1234          0           0 
          3       1234          0           0 
";
    assert_eq!(text, expected);
    let read = histogram::parse(text.as_bytes()).expect("our own text");
    assert_eq!(read, histogram::of_host(&host, None));
    assert_eq!(read[1].totals().last(), Some(&(4, 0, 0)));
    assert_eq!(read[1].totals()[3], (3, 40, 7));
}

#[test]
fn lru_gen_full_has_six_letters_in_the_series_and_four_in_6_12() {
    let (host, memcg, mm) = machine();
    populate(&host, &mm, Kind::Anon, 40);
    age(&Cpu::new(&host), &memcg, 0, true, true).expect("aged");
    let text = debugfs::show_full(&host);
    let lines: Vec<&str> = text.lines().collect();
    let at = lines
        .iter()
        .position(|l| l.starts_with("memcg     2"))
        .expect("our memcg");
    // Generation 1 to 4; each with four tiers and the walk's counts.
    assert_eq!(
        lines[at + 14],
        "          3          0         40           0 "
    );
    assert_eq!(
        lines[at + 15],
        "                     0          0r          0e          0p          0r          0e          0p"
    );
    assert_eq!(
        lines[at + 19],
        "                               40l          0o         40y          1n          1f          1a"
    );
    assert_eq!(
        lines[at + 21],
        "                     0          0R          0T          0x          0R          0T          0x"
    );
    assert_eq!(
        lines[at + 25],
        "                                0x          0x          0x          0x          0x          0x"
    );
    let read = histogram::parse(text.as_bytes()).expect("our own text");
    assert_eq!(read, histogram::of_host(&host, Some(Letters::Six)));
    assert_eq!(histogram::print(&read), text);
    host.lru_gen.set_asking(Asking::Accurate);
    let text = debugfs::show_full(&host);
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(
        lines[at + 19],
        "                               40t         40y          1f          1a"
    );
    let read = histogram::parse(text.as_bytes()).expect("our own text");
    assert_eq!(histogram::print(&read), text);
}

#[test]
fn what_a_real_kernel_printed_is_read() {
    // As Documentation/admin-guide/mm/multigen_lru.rst describes it, with the
    // retired file generation of a swapless machine.
    let text = "memcg  9341 /system.slice/a b.service\n node     0\n\
        \x20         5      90210        120x        33 \n\
        \x20                    0          3r         10e          0p          0r          7e          0p\n\
        \x20                    1          0r          0e          1p          0r          0e          0p\n\
        \x20                             100t         40y          2f          1a\n\
        \x20         6         10          4           0 \n";
    let read = histogram::parse(text.as_bytes()).expect("readable");
    assert_eq!(
        (read[0].id, read[0].path.as_str()),
        (9341, "/system.slice/a b.service")
    );
    let generations = &read[0].nodes[0].generations;
    assert_eq!((generations[0].seq, generations[0].age_ms), (5, 90210));
    assert_eq!(
        (generations[0].pages, generations[0].retired),
        ([120, 33], [true, false])
    );
    let full = generations[0].full.as_ref().expect("a full one");
    assert_eq!(full.tiers[0][1], (10, b'e'));
    assert_eq!(full.walk, [(100, b't'), (40, b'y'), (2, b'f'), (1, b'a')]);
    assert!(generations[1].full.is_none());
}

#[test]
fn mistakes_in_histograms_are_located() {
    for (text, place, what) in [
        (" node 0\n", "line 1, column 1", "a memcg line"),
        ("memcg x /\n", "line 1, column 7", "a memcg number"),
        ("memcg 70000 /\n", "line 1, column 7", "at most 65535"),
        (
            "memcg 1 /\n 1 2 3 4\n",
            "line 2, column 1",
            "a memcg or node line",
        ),
        (
            "memcg 1 /\n node 0 0\n",
            "line 2, column 9",
            "the end of the line",
        ),
        (
            "memcg 1 /\n node 0\n 1 2 3\n",
            "line 3, column 1",
            "a generation, a tier",
        ),
        (
            "memcg 1 /\n node 0\n 2 2 3 4\n 1 1 1 1\n",
            "line 4, column 1",
            "younger",
        ),
        (
            "memcg 1 /\n node 0\n 1 2 3q 4\n",
            "line 3, column 1",
            "perhaps with an x",
        ),
        (
            "memcg 1 /\n node 0\n 1 2 3 4\n 1 0r 0e 0p 0r 0e 0p\n",
            "line 4, column 1",
            "next tier",
        ),
        (
            "memcg 1 /\n node 0\n 1 -2 3 4\n",
            "line 3, column 4",
            "a number",
        ),
    ] {
        let error = histogram::parse(text.as_bytes())
            .expect_err(text)
            .to_string();
        assert!(
            error.contains(place) && error.contains(what),
            "{text:?}: {error}"
        );
    }
}

#[test]
fn commands_do_what_the_kernels_do() {
    let (host, memcg, _mm) = machine();
    let cpu = Cpu::new(&host);
    let lruvec = &memcg.lruvecs[0];
    let errno = |text: &str| {
        debugfs::write(&cpu, text.as_bytes())
            .expect_err(text)
            .errno()
    };
    for bad in [
        "",
        " \n;,",
        "+ 2 0",
        "x 2 0 3",
        "+ 2 2 3",
        "+ 9 0 3",
        "+ 2 0 3 201",
        "+ 2 0 3 1 1 1",
        "+ 2 0 3 1 z",
        "+ 2 0 three",
        "+ -1 0 3",
        "+ 2 0 4",
        "- 2 0 2",
        "+ 2 0 3x",
        "+ 65538 0 3",
        // No memory cgroup has number 0; the root has 1.
        "+ 0 0 3",
    ] {
        assert_eq!(errno(bad), Errno::EINVAL, "{bad:?}");
        assert_eq!(lruvec.max_seq(), 3, "{bad:?} did something");
    }
    assert_eq!(errno("+ 2 0 3 1 0"), Errno::ERANGE);
    assert_eq!(errno("- 2 0 18446744073709551615"), Errno::EINVAL);
    assert_eq!(errno("+ 2 0 18446744073709551615"), Errno::EINVAL);
    debugfs::write(&cpu, b"+ 2 0 2").expect("an older one does nothing");
    assert_eq!(lruvec.max_seq(), 3);
    debugfs::write(&cpu, b"+2 0 3").expect("no space is needed");
    debugfs::write(&cpu, b"  + 4294967298 0 4 1\n").expect("cut to 32 bits, as sscanf does");
    debugfs::write(
        &cpu,
        b"+ 2 0 5 4294967295 7;\n\n+ 2 0 6 0 1, + 2 0 7\0garbage",
    )
    .expect("all");
    assert_eq!(lruvec.max_seq(), 8);
    // The first error stops; what came before it is done.
    assert_eq!(errno("+ 2 0 8; + 2 0 8 1 1 1; + 2 0 9"), Errno::EINVAL);
    assert_eq!(lruvec.max_seq(), 9);
    let error = debugfs::write(&cpu, b"+ 2 0 1\n+ 2 0 1, + 2 0 z")
        .expect_err("z")
        .to_string();
    assert!(
        error.contains("line 2, column 16: expected a generation, found \"z\""),
        "{error}"
    );
}

#[test]
fn enabled_and_min_ttl_read_back() {
    let (host, ..) = machine();
    assert_eq!(debugfs::show_enabled(&host), "0x000f\n");
    for (text, shown) in [
        ("0x7\n", "0x0007\n"),
        ("n", "0x0000\n"),
        ("Yes", "0x000f\n"),
        ("11", "0x000b\n"),
        ("0xffff", "0x000f\n"),
    ] {
        debugfs::write_enabled(&host, text.as_bytes()).expect(text);
        assert_eq!(debugfs::show_enabled(&host), shown);
    }
    for bad in ["", "-1", "0x", "7 7", "4294967296", "x"] {
        let error = debugfs::write_enabled(&host, bad.as_bytes()).expect_err(bad);
        assert_eq!(error.errno(), Errno::EINVAL);
    }
    host.lru_gen.set_asking(Asking::Accurate);
    debugfs::write_enabled(&host, b"y").expect("all");
    assert_eq!(host.lru_gen.caps(), caps::ALL & !caps::SECONDARY_MMU_WALK);
    debugfs::write_min_ttl_ms(&host, b"1000\n").expect("a number");
    assert_eq!(debugfs::show_min_ttl_ms(&host), "1000\n");
    assert!(debugfs::write_min_ttl_ms(&host, b"soon").is_err());
}

#[test]
fn mistakes_in_scenarios_are_located() {
    for (text, place, what) in [
        ("snap\n  frob\n", "line 2, column 3", "an operation"),
        ("map A anon\n", "line 1, column 11", "a number of pages"),
        ("map A wood 4\n", "line 1, column 7", "anon, file"),
        ("map A anon 0\n", "line 1, column 12", "at least 1 page"),
        (
            "map A anon 4\nmap A anon 4",
            "line 2, column 5",
            "a new region",
        ),
        (
            "touch A 0 1 1 r\n",
            "line 1, column 7",
            "a region mapped before",
        ),
        (
            "map A anon 4\ntouch A 0 5 1 r\n",
            "line 2, column 9",
            "within the region's 4",
        ),
        (
            "map A anon 4\ntouch A 0 4 1 x\n",
            "line 2, column 15",
            "r or w",
        ),
        (
            "map A anon 4\ntouch A 0 4 1 w w\n",
            "line 2, column 17",
            "the end of the line",
        ),
        ("age 1\n", "line 1, column 6", "force_scan"),
        ("evict max 1 1\n", "line 1, column 7", "min, or a number"),
        ("raw\n", "line 1, column 4", "text to write"),
        (
            "map A anon 4\ncheck A 0 4 1 0x100\n",
            "line 2, column 15",
            "at most 255",
        ),
        (
            "snap \u{e9} #x\n",
            "line 1, column 6",
            "the end of the line",
        ),
    ] {
        let error = parse::parse(text.as_bytes()).expect_err(text).to_string();
        assert!(
            error.contains(place) && error.contains(what),
            "{text:?}: {error}"
        );
    }
    let error = parse::parse(b"# fine\nsnap\xff")
        .expect_err("not UTF-8")
        .to_string();
    assert!(error.contains("line 2"), "{error}");
    let error = Recording::parse(b"{\n").expect_err("not JSON").to_string();
    assert!(error.contains("line 1, column"), "{error}");
    assert!(Recording::parse(b"").is_err());
}

/// Bytes that are nearly what is expected: pieces of it, put together wrongly.
fn nearly() -> impl Strategy<Value = Vec<u8>> {
    let piece = prop_oneof![
        4 => prop::sample::select(vec![
            "+", "-", "x", "memcg", "node", "map", "A", "anon", "touch", "evict", "min", "age",
            "raw", "check", "0x5a", "%MAX", "1", "0", "3", "18446744073709551615", "4294967296",
            "99999999999999999999999", "r", "w", "12r", "7x", "{", "}", "\"step\":0", "[", ",", ";",
            "#", "/", "-2", "vm", "vmslot", "sleep", "read", "memset", "write",
        ]).prop_map(|piece| piece.as_bytes().to_vec()),
        1 => prop::collection::vec(any::<u8>(), 0..4),
    ];
    let space = prop::sample::select(vec![" ", " ", "\n", "", "\t", ",", "  "]);
    prop::collection::vec((piece, space), 0..24).prop_map(|pieces| {
        pieces
            .into_iter()
            .flat_map(|(piece, space)| [piece, space.as_bytes().to_vec()].concat())
            .collect()
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(budget::cases(3000)))]
    #[test]
    fn no_bytes_make_a_parser_panic(bytes in prop_oneof![nearly(), prop::collection::vec(any::<u8>(), 0..200)]) {
        let located = |e: youngbit_core::Error| {
            let text = e.to_string();
            assert!(text.contains("line ") && text.contains(", column "), "{text}");
        };
        if let Err(e) = histogram::parse(&bytes) { located(e); }
        if let Err(e) = parse::parse(&bytes) { located(e); }
        if let Err(e) = Recording::parse(&bytes) { located(e); }
        let (host, ..) = machine();
        let cpu = Cpu::new(&host);
        let _ = debugfs::write(&cpu, &bytes);
        let _ = debugfs::write_enabled(&host, &bytes);
        let _ = debugfs::write_min_ttl_ms(&host, &bytes);
    }

    #[test]
    fn what_is_printed_is_read_back(ages in prop::collection::vec((any::<u32>(), any::<u32>(), any::<u32>()), 1..5),
                                    first in 0u64..1 << 40, id: u16) {
        let generations = ages.iter().zip(first..).map(|(&(age, anon, file), seq)| histogram::Generation {
            seq,
            age_ms: age.into(),
            pages: [anon.into(), file.into()],
            ..Default::default()
        }).collect();
        let memcg = histogram::MemcgHistogram {
            id,
            path: "/a".into(),
            nodes: vec![histogram::NodeHistogram { node: 0, generations }],
        };
        let text = histogram::print(std::slice::from_ref(&memcg));
        prop_assert_eq!(histogram::parse(text.as_bytes()).expect("readable"), vec![memcg]);
    }
}

#[test]
fn names_of_memory_cgroups_are_paths_that_a_line_can_hold() {
    let (host, memcg, _) = machine();
    assert_eq!((memcg.id, memcg.name.as_str()), (2, "/user.slice/vm 1"));
    assert_eq!(host.memcgs()[0].name, "/");
    let errno = |name| host.create_memcg(name).err().map(|e| e.errno());
    for taken in ["/", "user.slice/vm 1", "/user.slice/vm 1"] {
        assert_eq!(errno(taken), Some(Errno::EEXIST), "{taken:?}");
    }
    for wrong in [
        "", "a\nb", "/a\n", "a\0", "//", "//a", "a//b", "/a/", ".", "/..", "/a/./b", "a/../b",
    ] {
        assert_eq!(errno(wrong), Some(Errno::EINVAL), "{wrong:?}");
    }
    for fine in ["a", "/a/b", "...", "/a/.hidden", "machine.slice/\u{fc}ber"] {
        assert_eq!(errno(fine), None, "{fine:?}");
    }
    let text = debugfs::show(&host);
    let read = histogram::parse(text.as_bytes()).expect("our own text");
    assert_eq!(read, histogram::of_host(&host, None));
    assert_eq!(read.len(), 7);
}
