//! The stack machine that executes a pickle.

use std::collections::HashMap;

use safetensors::tensor::Dtype;

use super::quoted;

/// Limits far above those of any checkpoint, which keep a malicious file from exhausting memory.
const MAX_STACK: usize = 1 << 20;
const MAX_MARKS: usize = 1 << 10;
const MAX_VALUES: usize = 1 << 22;

/// The dtypes, which may occur as plain values.
const DTYPES: [&str; 10] =
    ["float32", "float16", "bfloat16", "float64", "int64", "int32", "int16", "int8", "uint8", "bool"];

/// A value on the stack. Values are small and copied; containers refer to their contents by index, so that nothing recurses into
/// nested values.
#[derive(Clone, Copy)]
pub(super) enum Value<'a> {
    Int(i64),
    Text(&'a str),
    /// None, bools, floats, bytes, large integers, devices, dtypes: never inspected.
    Plain,
    /// A list; its items are dropped.
    List,
    /// The range of its items in `items`.
    Tuple(usize, usize),
    Dict(usize),
    Global(Global),
    /// The dtype, the name of the record and the number of elements.
    Storage(Dtype, &'a str, i64),
    /// The range of the arguments of `_rebuild_tensor_v2` in `items`; checked once the name of the tensor is known.
    Tensor(usize, usize),
}

/// The globals that a state dict may use.
#[derive(Clone, Copy)]
pub(super) enum Global {
    OrderedDict,
    RebuildTensor,
    RebuildParameter,
    Storage(Dtype),
    /// Returns a plain value when called.
    Plain,
}

pub(super) type Pair<'a> = (Value<'a>, Value<'a>);

#[derive(Default)]
struct Dict<'a> {
    pairs: Vec<Pair<'a>>,
    /// Cached, because a pickle could trigger the search many times.
    holds_tensors: bool,
}

#[derive(Default)]
pub(super) struct Machine<'a> {
    input: &'a [u8],
    at: usize,
    /// The position of the current opcode, for errors.
    opcode: usize,
    stack: Vec<Value<'a>>,
    marks: Vec<usize>,
    memo: HashMap<usize, Value<'a>>,
    items: Vec<Value<'a>>,
    dicts: Vec<Dict<'a>>,
    allocated: usize,
}

impl<'a> Machine<'a> {
    pub(super) fn new(input: &'a [u8]) -> Self {
        Self { input, ..Self::default() }
    }

    /// Executes the pickle and returns its value. Terminates, because every opcode consumes input and there are no jumps.
    pub(super) fn run(&mut self) -> Result<Value<'a>, String> {
        self.execute().map_err(|error| format!("`data.pkl`, byte {}: {error}", self.opcode))
    }

    fn execute(&mut self) -> Result<Value<'a>, String> {
        loop {
            self.opcode = self.at;
            let [code] = self.bytes()?;
            if code == b'.' {
                break;
            }
            self.step(code)?;
            if self.stack.len() > MAX_STACK || self.marks.len() > MAX_MARKS || self.allocated > MAX_VALUES {
                return Err(format!(
                    "expected at most {MAX_STACK} values on the stack, {MAX_MARKS} levels of nesting and {MAX_VALUES} \
                     values in total, found more"
                ));
            }
        }
        match self.stack.as_slice() {
            [value] if self.marks.is_empty() && self.at == self.input.len() => Ok(*value),
            _ => Err("expected the pickle to end with exactly one value, found trailing data, marks or a different \
                      number of values"
                .into()),
        }
    }

    fn step(&mut self, code: u8) -> Result<(), String> {
        let value = match code {
            // PROTO; FRAME, which is skipped.
            0x80 => {
                return match self.bytes()? {
                    [2..=5] => Ok(()),
                    [other] => Err(format!("expected pickle protocol 2 to 5, found {other}")),
                };
            }
            0x95 => return self.bytes::<8>().map(drop),
            // NONE, NEWTRUE, NEWFALSE.
            b'N' | 0x88 | 0x89 => Value::Plain,
            b'K' => Value::Int(self.bytes().map(u8::from_le_bytes)?.into()),
            b'M' => Value::Int(self.bytes().map(u16::from_le_bytes)?.into()),
            b'J' => Value::Int(self.bytes().map(i32::from_le_bytes)?.into()),
            // LONG1.
            0x8a => {
                let digits = self.sized::<1>()?;
                let sign = if digits.last().is_some_and(|byte| *byte >= 0x80) { -1 } else { 0 };
                let join = |sum, byte: &u8| sum << 8 | i64::from(*byte);
                if digits.len() > 8 { Value::Plain } else { Value::Int(digits.iter().rev().fold(sign, join)) }
            }
            b'G' => self.bytes::<8>().map(|_| Value::Plain)?,
            // LONG4, and the opcodes of bytes and byte arrays.
            0x8b | b'B' => self.sized::<4>().map(|_| Value::Plain)?,
            b'C' => self.sized::<1>().map(|_| Value::Plain)?,
            0x8e | 0x96 => self.sized::<8>().map(|_| Value::Plain)?,
            // Text with a length of 1, 4 or 8 bytes.
            0x8c => Value::Text(text(self.sized::<1>()?)?),
            b'X' => Value::Text(text(self.sized::<4>()?)?),
            0x8d => Value::Text(text(self.sized::<8>()?)?),
            b']' => Value::List,
            b'}' => self.dict(),
            b')' => self.tuple(&[]),
            0x85..=0x87 => {
                let items = self.top(usize::from(code - 0x84))?;
                self.tuple(&items)
            }
            b't' => {
                let items = self.marked()?;
                self.tuple(&items)
            }
            b'(' => {
                self.marks.push(self.stack.len());
                return Ok(());
            }
            // APPEND, APPENDS, SETITEM, SETITEMS.
            b'a' => return self.pop().and_then(|_| self.append()),
            b'e' => return self.marked().and_then(|_| self.append()),
            b's' => return self.top(2).and_then(|items| self.set(&items)),
            b'u' => return self.marked().and_then(|items| self.set(&items)),
            // BINPUT, LONG_BINPUT, MEMOIZE, which do not pop the value.
            b'q' => return self.number::<1>().and_then(|key| self.memoize(key)),
            b'r' => return self.number::<4>().and_then(|key| self.memoize(key)),
            0x94 => return self.memoize(self.memo.len()),
            // BINGET, LONG_BINGET.
            b'h' => self.number::<1>().and_then(|key| self.memoized(key))?,
            b'j' => self.number::<4>().and_then(|key| self.memoized(key))?,
            b'c' => {
                let (module, name) = (self.line()?, self.line()?);
                global(module, name)?
            }
            // STACK_GLOBAL.
            0x93 => match (self.pop()?, self.pop()?) {
                (Value::Text(name), Value::Text(module)) => global(module, name)?,
                (name, _) => return Err(format!("expected the name of a global, found {}", name.kind())),
            },
            b'Q' => self.storage()?,
            b'R' => self.call()?,
            // BUILD: sets attributes of a dict, such as the `_metadata` of a state dict; ignored.
            b'b' => {
                self.pop()?;
                return match self.peek()? {
                    Value::Dict(_) => Ok(()),
                    other => Err(format!("expected attributes of a dict, found those of {}", other.kind())),
                };
            }
            _ => return Err(format!("opcode {code:#04x} is not allowed in a state dict")),
        };
        self.stack.push(value);
        Ok(())
    }

    // Reading the input.

    fn take(&mut self, size: usize) -> Result<&'a [u8], String> {
        let end = self.at.checked_add(size);
        let bytes = end.and_then(|end| self.input.get(self.at..end));
        let bytes = bytes
            .ok_or_else(|| format!("expected at least {size} more bytes, found the end of the pickle"))?;
        self.at += size;
        Ok(bytes)
    }

    fn bytes<const N: usize>(&mut self) -> Result<[u8; N], String> {
        let bytes = self.input.get(self.at..).and_then(<[u8]>::first_chunk);
        let bytes =
            bytes.ok_or_else(|| format!("expected at least {N} more bytes, found the end of the pickle"))?;
        self.at += N;
        Ok(*bytes)
    }

    fn number<const N: usize>(&mut self) -> Result<usize, String> {
        let value = self.bytes::<N>()?.iter().rev().fold(0, |sum, byte| sum << 8 | u64::from(*byte));
        usize::try_from(value).map_err(|_| format!("expected a size or an index, found {value}"))
    }

    /// Reads bytes that are preceded by their number, which takes `N` bytes.
    fn sized<const N: usize>(&mut self) -> Result<&'a [u8], String> {
        self.number::<N>().and_then(|size| self.take(size))
    }

    fn line(&mut self) -> Result<&'a str, String> {
        let rest = self.input.get(self.at..).unwrap_or_default();
        let size =
            rest.iter().position(|byte| *byte == b'\n').ok_or("expected a line, found no end of line")?;
        let line = text(self.take(size)?)?;
        self.at += 1;
        Ok(line)
    }

    // The stack; values below the last mark are out of reach.

    fn top(&mut self, count: usize) -> Result<Vec<Value<'a>>, String> {
        let floor = self.marks.last().copied().unwrap_or(0);
        let from = self.stack.len().checked_sub(count).filter(|from| *from >= floor);
        let from = from.ok_or_else(|| format!("expected {count} values on the stack, found fewer"))?;
        Ok(self.stack.split_off(from))
    }

    fn pop(&mut self) -> Result<Value<'a>, String> {
        let value = self.peek()?;
        self.stack.pop();
        Ok(value)
    }

    fn peek(&self) -> Result<Value<'a>, String> {
        let floor = self.marks.last().copied().unwrap_or(0);
        let above = self.stack.get(floor..).and_then(<[_]>::last).copied();
        above.ok_or_else(|| "expected a value on the stack, found none".into())
    }

    fn marked(&mut self) -> Result<Vec<Value<'a>>, String> {
        let mark = self.marks.pop().ok_or("expected a mark on the stack, found none")?;
        Ok(self.stack.split_off(mark.min(self.stack.len())))
    }

    // Building values.

    fn dict(&mut self) -> Value<'a> {
        self.dicts.push(Dict::default());
        self.allocated += 1;
        Value::Dict(self.dicts.len() - 1)
    }

    fn tuple(&mut self, items: &[Value<'a>]) -> Value<'a> {
        self.allocated += items.len();
        self.items.extend_from_slice(items);
        Value::Tuple(self.items.len() - items.len(), self.items.len())
    }

    fn append(&mut self) -> Result<(), String> {
        match self.peek()? {
            Value::List => Ok(()),
            other => Err(format!("expected a list to append to, found {}", other.kind())),
        }
    }

    fn set(&mut self, items: &[Value<'a>]) -> Result<(), String> {
        let dict = match self.peek()? {
            Value::Dict(index) => self.dicts.get_mut(index),
            other => return Err(format!("expected a dict to fill, found {}", other.kind())),
        };
        let (pairs, []) = items.as_chunks::<2>() else {
            return Err(format!("expected pairs of keys and values, found {} items", items.len()));
        };
        self.allocated += items.len();
        if let Some(dict) = dict {
            dict.holds_tensors |= pairs.iter().any(|[_, value]| matches!(value, Value::Tensor(..)));
            dict.pairs.extend(pairs.iter().map(|[key, value]| (*key, *value)));
        }
        Ok(())
    }

    fn memoize(&mut self, key: usize) -> Result<(), String> {
        let value = self.peek()?;
        self.allocated += 1;
        self.memo.insert(key, value);
        Ok(())
    }

    fn memoized(&self, key: usize) -> Result<Value<'a>, String> {
        let value = self.memo.get(&key).copied();
        value.ok_or_else(|| format!("memo {key} is missing"))
    }

    /// BINPERSID: the reference to a storage.
    fn storage(&mut self) -> Result<Value<'a>, String> {
        let reference = self.pop()?;
        match self.items(reference) {
            [
                Value::Text("storage"),
                Value::Global(Global::Storage(dtype)),
                Value::Text(key),
                Value::Text(_),
                Value::Int(elements),
            ] => Ok(Value::Storage(*dtype, key, *elements)),
            other => Err(format!("expected a reference to a storage, found {}", kinds(other))),
        }
    }

    /// REDUCE: calls a global.
    fn call(&mut self) -> Result<Value<'a>, String> {
        let (arguments, callee) = (self.pop()?, self.pop()?);
        match (callee, arguments, self.items(arguments)) {
            (Value::Global(Global::OrderedDict), Value::Tuple(..), []) => Ok(self.dict()),
            (Value::Global(Global::RebuildTensor), Value::Tuple(from, to), _) => Ok(Value::Tensor(from, to)),
            (
                Value::Global(Global::RebuildParameter),
                Value::Tuple(..),
                [tensor @ Value::Tensor(..), _, _],
            ) => Ok(*tensor),
            (Value::Global(Global::Plain), Value::Tuple(..), _) => Ok(Value::Plain),
            (callee, _, items) => Err(format!(
                "expected a call that torch.save writes, found {} called with {}",
                callee.kind(),
                kinds(items)
            )),
        }
    }

    // Reading values.

    /// Returns the items of a tuple or the arguments of a tensor.
    pub(super) fn items(&self, value: Value<'a>) -> &[Value<'a>] {
        let (Value::Tuple(from, to) | Value::Tensor(from, to)) = value else { return &[] };
        self.items.get(from..to).unwrap_or_default()
    }

    pub(super) fn pairs(&self, value: Value<'a>) -> &[Pair<'a>] {
        let Value::Dict(index) = value else { return &[] };
        self.dicts.get(index).map(|dict| dict.pairs.as_slice()).unwrap_or_default()
    }

    /// Whether `value` is a dict with tensors.
    pub(super) fn holds_tensors(&self, value: Value) -> bool {
        matches!(value, Value::Dict(index) if self.dicts.get(index).is_some_and(|dict| dict.holds_tensors))
    }
}

impl Value<'_> {
    /// Returns its name in errors.
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Value::Int(_) => "an integer",
            Value::Text(_) => "text",
            Value::Plain => "a plain value",
            Value::List => "a list",
            Value::Tuple(..) => "a tuple",
            Value::Dict(_) => "a dict",
            Value::Global(_) => "a global",
            Value::Storage(..) => "a storage",
            Value::Tensor(..) => "a tensor",
        }
    }
}

/// Resolves a global. This is the only access of a pickle to Python.
fn global<'a>(module: &str, name: &str) -> Result<Value<'a>, String> {
    let global = match (module, name) {
        ("collections", "OrderedDict") => Global::OrderedDict,
        ("torch._utils", "_rebuild_tensor_v2") => Global::RebuildTensor,
        ("torch._utils", "_rebuild_parameter") => Global::RebuildParameter,
        ("torch", "Size" | "device") => Global::Plain,
        ("torch", "FloatStorage") => Global::Storage(Dtype::F32),
        ("torch", "HalfStorage") => Global::Storage(Dtype::F16),
        ("torch", "BFloat16Storage") => Global::Storage(Dtype::BF16),
        ("torch", "DoubleStorage") => Global::Storage(Dtype::F64),
        ("torch", "LongStorage") => Global::Storage(Dtype::I64),
        ("torch", "IntStorage") => Global::Storage(Dtype::I32),
        ("torch", "ShortStorage") => Global::Storage(Dtype::I16),
        ("torch", "CharStorage") => Global::Storage(Dtype::I8),
        ("torch", "ByteStorage") => Global::Storage(Dtype::U8),
        ("torch", "BoolStorage") => Global::Storage(Dtype::BOOL),
        ("torch", name) if DTYPES.contains(&name) => return Ok(Value::Plain),
        _ => {
            return Err(format!(
                "{} is not allowed in a state dict (nothing was executed)",
                quoted(&format!("{module}.{name}"))
            ));
        }
    };
    Ok(Value::Global(global))
}

fn text(bytes: &[u8]) -> Result<&str, String> {
    std::str::from_utf8(bytes).map_err(|error| format!("expected UTF-8 text, found something else: {error}"))
}

pub(super) fn kinds(values: &[Value]) -> String {
    let kinds: Vec<_> = values.iter().take(8).map(Value::kind).collect();
    format!("({})", kinds.join(", "))
}
