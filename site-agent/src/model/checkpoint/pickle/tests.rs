//! Pickles made by hand, most of them hostile.

use super::*;
use crate::model::checkpoint::error::PickleRefusal;

/// `{"w": tensor}` with these fields of the tensor; the fields are instructions.
fn tensor(storage: &[u8], offset: &[u8], shape: &[u8], strides: &[u8]) -> Vec<u8> {
    let head = b"\x80\x02}X\x01\0\0\0wctorch._utils\n_rebuild_tensor_v2\n(";
    [head.as_slice(), storage, offset, shape, strides, b"\x89ccollections\nOrderedDict\n)RtRs."].concat()
}

const STORAGE: &[u8] = b"(X\x07\0\0\0storagectorch\nFloatStorage\nX\x01\0\0\x000X\x03\0\0\0cpuK\x06tQ";

fn refusal(pickle: &[u8]) -> (usize, PickleRefusal) {
    match Pickle::parse(pickle) {
        Err(CheckpointError::Pickle { position, refusal }) => (position, refusal),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_tensor_is_where_its_pickle_says() {
    let bytes = tensor(STORAGE, b"K\x01", b"K\x01K\x02\x86", b"K\x02K\x01\x86");
    let pickle = Pickle::parse(&bytes).unwrap();
    let Node::Dict(entries) = pickle.root() else { panic!("{:?}", pickle.root()) };
    let &[(name, value)] = entries.as_slice() else { panic!("{entries:?}") };
    assert_eq!(pickle.node(name), &Node::Text("w"));
    let storage = Storage { number: Number::F32, key: "0".to_owned(), length: 6 };
    let expected = StoredTensor { storage, offset: 1, shape: vec![1, 2], strides: vec![2, 1] };
    assert_eq!(pickle.node(value), &Node::Tensor(expected));
}

#[test]
fn code_is_named_and_never_run() {
    let system = b"\x80\x02cos\nsystem\nX\x02\0\0\0id\x85R.";
    assert_eq!(refusal(system), (2, PickleRefusal::Global("os.system".to_owned())));
    let eval = b"\x80\x02}X\x03\0\0\0net(cbuiltins\neval\nX\x01\0\0\x001\x85RtR.";
    assert_eq!(refusal(eval).1, PickleRefusal::Global("builtins.eval".to_owned()));
    for (module, name) in [("torch", "load"), ("torch._utils", "_rebuild_tensor"), ("collections", "Counter")]
    {
        let pickle = format!("c{module}\n{name}\n.");
        assert_eq!(refusal(pickle.as_bytes()), (0, PickleRefusal::Global(format!("{module}.{name}"))));
    }
}

#[test]
fn instructions_that_make_objects_are_refused() {
    // NEWOBJ, INST, OBJ, EXT1, STACK_GLOBAL, a text persistent id, DUP, POP.
    for instruction in [0x81, b'i', b'o', 0x82, 0x93, b'P', b'2', b'0'] {
        assert_eq!(refusal(&[0x80, 2, b'N', instruction]), (3, PickleRefusal::Instruction(instruction)));
    }
    assert_eq!(refusal(b"\x80\x04N.").1, PickleRefusal::Protocol(4));
}

#[test]
fn only_tensors_and_dictionaries_are_called() {
    assert_eq!(refusal(b"ctorch\nFloatStorage\n)R.").1, PickleRefusal::Call);
    assert_eq!(refusal(b"ccollections\nOrderedDict\nN\x85R.").1, PickleRefusal::Call);
    assert_eq!(refusal(b"K\x01)R.").1, PickleRefusal::Call);
    assert_eq!(refusal(b"ccollections\nOrderedDict\n}b.").1, PickleRefusal::State);
}

#[test]
fn metadata_of_an_ordered_dictionary_is_ignored() {
    let bytes = b"ccollections\nOrderedDict\n)R}X\x09\0\0\0_metadataNsb.";
    assert_eq!(Pickle::parse(bytes).unwrap().root(), &Node::Dict(vec![]));
}

#[test]
fn sizes_are_small_and_not_negative() {
    let two = b"K\x01K\x01\x86".as_slice();
    assert_eq!(refusal(&tensor(STORAGE, b"J\xff\xff\xff\xff", two, two)).1, expected("a size of at least 0"));
    let minus_two = b"\x8a\x01\xfeK\x01\x86";
    assert_eq!(refusal(&tensor(STORAGE, b"K\0", two, minus_two)).1, expected("a size of at least 0"));
    assert_eq!(refusal(&tensor(STORAGE, b"K\0", two, b"K\x01\x85")).1, expected("one stride for each axis"));
    let many = [b"(".to_vec(), b"K\x01".repeat(9), b"t".to_vec()].concat();
    assert_eq!(refusal(&tensor(STORAGE, b"K\0", &many, &many)).1, expected("a tuple of at most 8 sizes"));
    assert_eq!(refusal(&tensor(b"N", b"K\0", two, two)).1, expected("a storage"));
    // 2^64: no place in a file.
    let huge = b"\x8a\x09\0\0\0\0\0\0\0\0\x01";
    assert!(matches!(refusal(&tensor(STORAGE, huge, two, two)).1, PickleRefusal::Expected(_)));
}

fn expected(what: &'static str) -> PickleRefusal {
    PickleRefusal::Expected(what)
}

#[test]
fn storages_have_numbers_for_keys_and_known_formats() {
    let storage = |key: &[u8], length: &[u8]| {
        let key = [b"X".as_slice(), &(key.len() as u32).to_le_bytes(), key].concat();
        [b"(X\x07\0\0\0storagectorch\nFloatStorage\n".as_slice(), &key, b"X\x03\0\0\0cpu", length, b"tQ."]
            .concat()
    };
    assert!(Pickle::parse(&storage(b"12", b"K\x06")).is_ok());
    let what = "a storage's name and length";
    for key in [[b'7'; 21].as_slice(), b"\x1b[2J", b"../1", "١".as_bytes()] {
        assert_eq!(refusal(&storage(key, b"K\x06")).1, expected(what), "{key:?}");
    }
    assert_eq!(refusal(&storage(b"1", b"J\xff\xff\xff\xff")).1, expected(what));
    assert_eq!(refusal(b"NQ.").1, expected(what));
    assert_eq!(refusal(b"ctorch\nQInt8Storage\n.").1, PickleRefusal::Global("torch.QInt8Storage".to_owned()));
}

#[test]
fn nesting_without_end_harms_nobody() {
    let deep = [vec![b')'], vec![0x85; 1_000_000], vec![b'.']].concat();
    drop(Pickle::parse(&deep).unwrap());
    let marks = [vec![b'('; 1_000_000], vec![b'.']].concat();
    assert_eq!(refusal(&marks).1, PickleRefusal::Stack);
}

#[test]
fn a_bomb_of_recalled_values_stays_as_small_as_its_pickle() {
    // Each level is a pair of the one below: 2^200 leaves if anything were copied.
    let mut bomb = b"K\x01q\0".to_vec();
    for _ in 0..200 {
        bomb.extend_from_slice(b"h\0\x86q\0");
    }
    bomb.push(b'.');
    assert!(Pickle::parse(&bomb).unwrap().nodes.len() < 300);
    // A list that contains itself.
    let circle = b"]q\0h\0a.";
    assert_eq!(Pickle::parse(circle).unwrap().root(), &Node::Sequence(vec![Id(0)]));
}

#[test]
fn lengths_beyond_the_end_are_cut_off() {
    assert_eq!(refusal(b"X\xff\xff\xff\xffabc").1, PickleRefusal::Truncated);
    assert_eq!(refusal(b"\x8a\xff\x01").1, PickleRefusal::Truncated);
    assert_eq!(refusal(b"cos").1, PickleRefusal::Truncated);
    let whole = tensor(STORAGE, b"K\0", b"K\x06\x85", b"K\x01\x85");
    for length in 0..whole.len() {
        assert!(Pickle::parse(&whole[..length]).is_err(), "{length}");
    }
}

#[test]
fn stack_and_memo_are_not_read_where_they_are_empty() {
    for pickle in [b".".as_slice(), b"t.", b"N(b.", b"N(R.", b"\x86.", b"(a.", b"q\0", b"NNu."] {
        assert_eq!(refusal(pickle).1, PickleRefusal::Stack, "{pickle:?}");
    }
    assert_eq!(refusal(b"j\x07\0\0\0.").1, PickleRefusal::Memo(7));
    assert_eq!(refusal(b"NN.").1, PickleRefusal::LeftOver);
    assert_eq!(refusal(b"N.N").1, PickleRefusal::LeftOver);
    assert!(matches!(refusal(b"}(Nu.").1, PickleRefusal::Expected(_)));
}

#[test]
fn no_damaged_byte_brings_it_down() {
    let whole = tensor(STORAGE, b"K\0", b"K\x06\x85", b"K\x01\x85");
    for position in 0..whole.len() {
        for value in 0..=255 {
            let mut damaged = whole.clone();
            damaged[position] = value;
            let _ = Pickle::parse(&damaged);
        }
    }
}
