//! A pickle machine that builds dictionaries of tensors and can do nothing else.
//!
//! Python's own machine imports what a pickle names and calls it, so opening a checkpoint can run any code. This one has
//! a closed list of names ([`Global`]), none of which is code: every other name and every instruction that `torch.save`
//! does not write (protocol 2) is a refusal with its position.

use std::collections::BTreeMap;

use super::{Global, Id, Node, Storage, StoredTensor};
use crate::model::checkpoint::{
    bytes::Bytes,
    error::{CheckpointError, PickleRefusal},
    numbers::Number,
};

/// No tensor of a network has more axes.
const MAX_RANK: usize = 8;

/// Digits of the longest key: PyTorch names storages by numbers of at most 64 bits.
const MAX_KEY: usize = 20;

/// Follows every instruction: all values, and the one that the pickle is for.
pub(super) fn run(bytes: &[u8]) -> Result<(Vec<Node<'_>>, Id), CheckpointError> {
    let mut machine = Machine { input: Bytes::new(bytes), ..Machine::default() };
    loop {
        let position = bytes.len() - machine.input.left();
        match machine.step() {
            Ok(None) => {}
            Ok(Some(root)) => return Ok((machine.nodes, root)),
            Err(refusal) => return Err(CheckpointError::Pickle { position, refusal }),
        }
    }
}

#[derive(Default)]
struct Machine<'a> {
    input: Bytes<'a>,
    /// Only grows: an [`Id`] that was given out stays valid.
    nodes: Vec<Node<'a>>,
    stack: Vec<Id>,
    /// Heights of the stack; none is above the stack, because nothing is taken from below the last one.
    marks: Vec<usize>,
    memo: BTreeMap<u32, Id>,
}

impl<'a> Machine<'a> {
    /// Follows one instruction; the last one gives the root.
    fn step(&mut self) -> Result<Option<Id>, PickleRefusal> {
        match self.read(Bytes::u8)? {
            0x80 => self.protocol()?,
            b'.' => return self.stop().map(Some),
            b'(' => self.marks.push(self.stack.len()),
            b'N' | 0x88 | 0x89 => self.push(Node::Opaque),
            b'G' => {
                self.read(Bytes::u64)?;
                self.push(Node::Opaque);
            }
            b'K' => {
                let value = self.read(Bytes::u8)?;
                self.push(Node::Int(value.into()));
            }
            b'M' => {
                let value = self.read(Bytes::u16)?;
                self.push(Node::Int(value.into()));
            }
            b'J' => {
                let value = self.read(Bytes::array)?;
                self.push(Node::Int(i32::from_le_bytes(value).into()));
            }
            0x8a => self.long()?,
            b'X' => self.text()?,
            b'}' => self.push(Node::Dict(Vec::new())),
            b')' | b']' => self.push(Node::Sequence(Vec::new())),
            b't' => {
                let items = self.pop_marked()?;
                self.push(Node::Sequence(items));
            }
            0x85 => self.tuple::<1>()?,
            0x86 => self.tuple::<2>()?,
            0x87 => self.tuple::<3>()?,
            b'q' => {
                let key = self.read(Bytes::u8)?;
                self.memorize(key.into())?;
            }
            b'r' => {
                let key = self.read(Bytes::u32)?;
                self.memorize(key)?;
            }
            b'h' => {
                let key = self.read(Bytes::u8)?;
                self.recall(key.into())?;
            }
            b'j' => {
                let key = self.read(Bytes::u32)?;
                self.recall(key)?;
            }
            b'c' => self.global()?,
            b'Q' => self.storage()?,
            b'R' => self.call()?,
            b'b' => self.set_state()?,
            b'a' => {
                let item = self.pop::<1>()?;
                self.extend(&item)?;
            }
            b'e' => {
                let items = self.pop_marked()?;
                self.extend(&items)?;
            }
            b's' => {
                let pair = self.pop::<2>()?;
                self.insert(&pair)?;
            }
            b'u' => {
                let pairs = self.pop_marked()?;
                self.insert(&pairs)?;
            }
            other => return Err(PickleRefusal::Instruction(other)),
        }
        Ok(None)
    }

    fn read<T>(&mut self, field: impl FnOnce(&mut Bytes<'a>) -> Option<T>) -> Result<T, PickleRefusal> {
        field(&mut self.input).ok_or(PickleRefusal::Truncated)
    }

    fn node(&self, id: Id) -> &Node<'a> {
        &self.nodes[id.0]
    }

    fn push(&mut self, node: Node<'a>) {
        self.stack.push(Id(self.nodes.len()));
        self.nodes.push(node);
    }

    /// The uppermost values, in the order in which they were put down.
    fn pop<const N: usize>(&mut self) -> Result<[Id; N], PickleRefusal> {
        let floor = self.marks.last().copied().unwrap_or(0);
        let above = self.stack.get(floor..).and_then(|above| above.last_chunk::<N>().copied());
        let popped = above.ok_or(PickleRefusal::Stack)?;
        self.stack.truncate(self.stack.len() - N);
        Ok(popped)
    }

    /// The values above the last mark.
    fn pop_marked(&mut self) -> Result<Vec<Id>, PickleRefusal> {
        let floor = self.marks.pop().ok_or(PickleRefusal::Stack)?;
        Ok(self.stack.split_off(floor))
    }

    /// The container that the following items go into: it stays where it is.
    fn target(&mut self) -> Result<&mut Node<'a>, PickleRefusal> {
        let [target] = self.pop()?;
        self.stack.push(target);
        Ok(&mut self.nodes[target.0])
    }

    fn protocol(&mut self) -> Result<(), PickleRefusal> {
        match self.read(Bytes::u8)? {
            2 => Ok(()),
            other => Err(PickleRefusal::Protocol(other)),
        }
    }

    fn stop(&mut self) -> Result<Id, PickleRefusal> {
        let [root] = self.pop()?;
        let is_all = self.stack.is_empty() && self.marks.is_empty() && self.input.left() == 0;
        if is_all { Ok(root) } else { Err(PickleRefusal::LeftOver) }
    }

    /// Two's complement of any length; what i64 cannot hold belongs to no tensor.
    fn long(&mut self) -> Result<(), PickleRefusal> {
        let length = self.read(Bytes::u8)?;
        let bytes = self.read(|input| input.take(length.into()))?;
        let sign = if bytes.last().is_some_and(|&byte| byte >= 0x80) { 0xff } else { 0 };
        let mut wide = [sign; 8];
        let node = match wide.get_mut(..bytes.len()) {
            Some(low) => {
                low.copy_from_slice(bytes);
                Node::Int(i64::from_le_bytes(wide))
            }
            None => Node::Opaque,
        };
        self.push(node);
        Ok(())
    }

    fn text(&mut self) -> Result<(), PickleRefusal> {
        let length = self.read(Bytes::u32)?;
        let length = usize::try_from(length).map_err(|_| PickleRefusal::Truncated)?;
        let bytes = self.read(|input| input.take(length))?;
        let text = std::str::from_utf8(bytes).map_err(|_| PickleRefusal::Expected("UTF-8"))?;
        self.push(Node::Text(text));
        Ok(())
    }

    fn tuple<const N: usize>(&mut self) -> Result<(), PickleRefusal> {
        let items = self.pop::<N>()?;
        self.push(Node::Sequence(items.to_vec()));
        Ok(())
    }

    fn memorize(&mut self, key: u32) -> Result<(), PickleRefusal> {
        let [value] = self.pop()?;
        self.stack.push(value);
        self.memo.insert(key, value);
        Ok(())
    }

    fn recall(&mut self, key: u32) -> Result<(), PickleRefusal> {
        let value = self.memo.get(&key).copied().ok_or(PickleRefusal::Memo(key))?;
        self.stack.push(value);
        Ok(())
    }

    fn global(&mut self) -> Result<(), PickleRefusal> {
        let (module, name) = (self.read(Bytes::line)?, self.read(Bytes::line)?);
        let global = match (module, name) {
            (b"collections", b"OrderedDict") => Some(Global::OrderedDict),
            (b"torch._utils", b"_rebuild_tensor_v2") => Some(Global::RebuildTensor),
            (b"torch._utils", b"_rebuild_parameter") => Some(Global::RebuildParameter),
            (b"torch", class) => {
                std::str::from_utf8(class).ok().and_then(Number::of_storage).map(Global::Storage)
            }
            _ => None,
        };
        let global = global.ok_or_else(|| PickleRefusal::Global(shown(module, name)))?;
        self.push(Node::Global(global));
        Ok(())
    }

    /// `('storage', class, key, location, length)`.
    fn storage(&mut self) -> Result<(), PickleRefusal> {
        let refusal = PickleRefusal::Expected("a storage's name and length");
        let [id] = self.pop()?;
        let Node::Sequence(parts) = self.node(id) else { return Err(refusal) };
        let &[kind, class, key, _location, length] = parts.as_slice() else { return Err(refusal) };
        let (
            Node::Text("storage"),
            &Node::Global(Global::Storage(number)),
            &Node::Text(key),
            &Node::Int(length),
        ) = (self.node(kind), self.node(class), self.node(key), self.node(length))
        else {
            return Err(refusal);
        };
        // Keys go into messages, as names do: none may bring control characters.
        let is_key = key.len() <= MAX_KEY && key.bytes().all(|byte| byte.is_ascii_digit());
        let (true, Ok(length)) = (is_key, u64::try_from(length)) else { return Err(refusal) };
        self.push(Node::Storage(Storage { number, key: key.to_owned(), length }));
        Ok(())
    }

    fn call(&mut self) -> Result<(), PickleRefusal> {
        let [function, arguments] = self.pop()?;
        let Node::Sequence(arguments) = self.node(arguments) else { return Err(PickleRefusal::Call) };
        let result = match (self.node(function), arguments.as_slice()) {
            (Node::Global(Global::OrderedDict), []) => Node::Dict(Vec::new()),
            (Node::Global(Global::RebuildTensor), &[storage, offset, shape, strides, ..]) => {
                Node::Tensor(self.tensor(storage, offset, shape, strides)?)
            }
            (Node::Global(Global::RebuildParameter), &[tensor, ..]) => match self.node(tensor) {
                Node::Tensor(tensor) => Node::Tensor(tensor.clone()),
                _ => return Err(PickleRefusal::Expected("a tensor")),
            },
            _ => return Err(PickleRefusal::Call),
        };
        self.push(result);
        Ok(())
    }

    fn tensor(&self, storage: Id, offset: Id, shape: Id, strides: Id) -> Result<StoredTensor, PickleRefusal> {
        let Node::Storage(storage) = self.node(storage) else {
            return Err(PickleRefusal::Expected("a storage"));
        };
        let (offset, shape, strides) = (self.size(offset)?, self.sizes(shape)?, self.sizes(strides)?);
        if shape.len() != strides.len() {
            return Err(PickleRefusal::Expected("one stride for each axis"));
        }
        Ok(StoredTensor { storage: storage.clone(), offset, shape, strides })
    }

    fn size(&self, id: Id) -> Result<u64, PickleRefusal> {
        let &Node::Int(size) = self.node(id) else { return Err(PickleRefusal::Expected("an integer")) };
        u64::try_from(size).map_err(|_| PickleRefusal::Expected("a size of at least 0"))
    }

    fn sizes(&self, id: Id) -> Result<Vec<u64>, PickleRefusal> {
        match self.node(id) {
            Node::Sequence(sizes) if sizes.len() <= MAX_RANK => {
                sizes.iter().map(|&size| self.size(size)).collect()
            }
            _ => Err(PickleRefusal::Expected("a tuple of at most 8 sizes")),
        }
    }

    /// PyTorch hangs version numbers on its ordered dictionaries, which say nothing about tensors.
    fn set_state(&mut self) -> Result<(), PickleRefusal> {
        let [_state] = self.pop()?;
        match self.target()? {
            Node::Dict(_) => Ok(()),
            _ => Err(PickleRefusal::State),
        }
    }

    fn extend(&mut self, items: &[Id]) -> Result<(), PickleRefusal> {
        match self.target()? {
            Node::Sequence(sequence) => sequence.extend_from_slice(items),
            _ => return Err(PickleRefusal::Expected("a list")),
        }
        Ok(())
    }

    fn insert(&mut self, items: &[Id]) -> Result<(), PickleRefusal> {
        let (pairs, rest) = items.as_chunks::<2>();
        match self.target()? {
            Node::Dict(dict) if rest.is_empty() => {
                dict.extend(pairs.iter().map(|&[key, value]| (key, value)))
            }
            _ => return Err(PickleRefusal::Expected("a dictionary and pairs")),
        }
        Ok(())
    }
}

/// A foreign name, short enough for a message.
fn shown(module: &[u8], name: &[u8]) -> String {
    let shown = format!("{}.{}", String::from_utf8_lossy(module), String::from_utf8_lossy(name));
    shown.chars().take(100).collect()
}
