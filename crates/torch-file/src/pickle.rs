//! A pickle machine that can build tensors, dictionaries, lists, text and numbers, and nothing else.
//!
//! The instructions are those of Python's `pickletools`. Objects are kept in one list and refer to each other by their place in
//! it, because a pickle may use an object many times, or within itself.

use std::{collections::HashMap, ops::Range, sync::Arc};

use crate::{
    Problem, Value,
    tensor::{Dtype, Storage, View},
};

/// In bytes. Each tensor takes about 150.
pub(crate) const LARGEST_PICKLE: usize = 16 << 20;
/// Objects of a pickle, and values of the tree made of them, at most.
const MOST_OBJECTS: usize = 1 << 20;
/// Containers within containers, at most.
const DEEPEST: usize = 32;
/// Arguments of a call, at most; sizes of a tensor are fewer.
const MOST_ARGUMENTS: usize = 16;
/// Bytes of a name, at most: of a module, a class or a storage.
const LONGEST_NAME: usize = 200;

/// An object's place among all objects of a pickle.
type Id = usize;

/// An object while the pickle is run.
#[derive(Clone, Debug)]
enum Object {
    None,
    Bool(bool),
    Int(i64),
    Float(f64),
    Text(Arc<str>),
    List(Vec<Id>),
    Dict(Vec<(Id, Id)>),
    Global(Global),
    Storage(Storage),
    Tensor(View),
}

/// The functions and classes that are known.
#[derive(Clone, Debug)]
enum Global {
    OrderedDict,
    /// `torch._utils._rebuild_tensor` and `_rebuild_tensor_v2`, which differ in arguments that don't matter here.
    RebuildTensor,
    /// `torch._utils._rebuild_parameter`.
    RebuildParameter,
    Storage(Dtype),
    /// Such as `torch.float32`.
    Dtype(String),
}

impl Global {
    fn named(module: &str, name: &str) -> Result<Self, Problem> {
        const DTYPES: [&str; 10] = [
            "float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8",
            "uint8", "bool",
        ];
        match (module, name) {
            ("collections", "OrderedDict") => Ok(Self::OrderedDict),
            ("torch._utils", "_rebuild_tensor" | "_rebuild_tensor_v2") => Ok(Self::RebuildTensor),
            ("torch._utils", "_rebuild_parameter") => Ok(Self::RebuildParameter),
            ("torch", name) if DTYPES.contains(&name) => Ok(Self::Dtype(format!("torch.{name}"))),
            ("torch", name) => Dtype::of_storage(name)
                .map(Self::Storage)
                .ok_or_else(|| Problem::Refused(format!("`torch.{name}`"))),
            _ => Err(Problem::Refused(format!("`{module}.{name}`"))),
        }
    }
}

/// The objects that a pickle made.
#[derive(Debug)]
pub(crate) struct Objects {
    all: Vec<Object>,
    root: Id,
    storages: HashMap<Arc<str>, Storage>,
}

impl Objects {
    /// A storage that a tensor was made of.
    pub fn storage(&self, key: &str) -> Option<&Storage> {
        self.storages.get(key)
    }

    /// The pickled object; `locate` says where in the file a storage is.
    pub fn value(&self, locate: &dyn Fn(&str) -> Option<Range<usize>>) -> Result<Value, Problem> {
        let mut left = MOST_OBJECTS;
        self.value_of(self.root, DEEPEST, &mut left, locate)
    }

    fn value_of(
        &self,
        id: Id,
        depth: usize,
        left: &mut usize,
        locate: &dyn Fn(&str) -> Option<Range<usize>>,
    ) -> Result<Value, Problem> {
        let damaged = |message: String| Problem::Damaged(message);
        let Some(rest) = left.checked_sub(1) else {
            return Err(damaged(format!("more than {MOST_OBJECTS} objects")));
        };
        *left = rest;
        let Some(inner) = depth.checked_sub(1) else {
            return Err(damaged(format!(
                "containers more than {DEEPEST} deep, or within themselves"
            )));
        };
        Ok(match &self.all[id] {
            Object::None => Value::None,
            Object::Bool(value) => Value::Bool(*value),
            Object::Int(value) => Value::Int(*value),
            Object::Float(value) => Value::Float(*value),
            Object::Text(text) => Value::Text(text.clone()),
            Object::List(items) => {
                let items = items.iter().map(|&item| self.value_of(item, inner, left, locate));
                Value::List(items.collect::<Result<_, _>>()?)
            }
            Object::Dict(entries) => {
                let mut values = Vec::new();
                for &(key, value) in entries {
                    let key = self.value_of(key, inner, left, locate)?;
                    values.push((key, self.value_of(value, inner, left, locate)?));
                }
                Value::Dict(values)
            }
            Object::Global(Global::Dtype(name)) => Value::Text(name.as_str().into()),
            Object::Global(_) => return Err(damaged("a class where a value belongs".into())),
            Object::Storage(storage) => {
                let message = format!("storage `{}` outside of a tensor", storage.key);
                return Err(damaged(message));
            }
            Object::Tensor(view) => {
                let key = &view.storage.key;
                let place = locate(key)
                    .ok_or_else(|| damaged(format!("the file has no storage `{key}`")))?;
                Value::Tensor(view.clone().placed(place).map_err(damaged)?)
            }
        })
    }
}

/// Runs the pickle that `bytes` begin with. Returns its objects and its length.
pub(crate) fn run(bytes: &[u8]) -> Result<(Objects, usize), Problem> {
    let bytes = &bytes[..bytes.len().min(LARGEST_PICKLE)];
    let mut machine = Machine { bytes, at: 0, ..Machine::default() };
    while machine.step()? {}
    let root = machine.pop()?;
    let objects = Objects { all: machine.objects, root, storages: machine.storages };
    Ok((objects, machine.at))
}

#[derive(Default)]
struct Machine<'a> {
    bytes: &'a [u8],
    at: usize,
    objects: Vec<Object>,
    stack: Vec<Id>,
    /// Heights of the stack.
    marks: Vec<usize>,
    memo: HashMap<u64, Id>,
    storages: HashMap<Arc<str>, Storage>,
    /// Pairs copied into dictionaries.
    copied: usize,
}

impl<'a> Machine<'a> {
    /// One instruction; false after the last one.
    fn step(&mut self) -> Result<bool, Problem> {
        let at = self.at;
        let [instruction] = self.fixed()?;
        match instruction {
            // PROTO, FRAME
            0x80 => drop(self.fixed::<1>()?),
            0x95 => drop(self.fixed::<8>()?),
            // STOP
            b'.' => return Ok(false),
            // MARK
            b'(' => self.marks.push(self.stack.len()),
            // Constants.
            b'N' => self.push(Object::None)?,
            0x88 => self.push(Object::Bool(true))?,
            0x89 => self.push(Object::Bool(false))?,
            // BININT, BININT1, BININT2, LONG1, BINFLOAT
            b'J' => {
                let value = i32::from_le_bytes(self.fixed()?);
                self.push(Object::Int(value.into()))?;
            }
            b'K' => {
                let [value] = self.fixed()?;
                self.push(Object::Int(value.into()))?;
            }
            b'M' => {
                let value = u16::from_le_bytes(self.fixed()?);
                self.push(Object::Int(value.into()))?;
            }
            0x8a => {
                let value = self.long()?;
                self.push(Object::Int(value))?;
            }
            b'G' => {
                let value = f64::from_be_bytes(self.fixed()?);
                self.push(Object::Float(value))?;
            }
            // SHORT_BINUNICODE, and SHORT_BINSTRING, which is Python 2's
            0x8c | b'U' => {
                let [length] = self.fixed()?;
                let text = self.text(length.into())?;
                self.push(Object::Text(text))?;
            }
            // BINUNICODE, BINSTRING
            b'X' | b'T' => {
                let length = u32::from_le_bytes(self.fixed()?);
                let text = self.text(length as usize)?;
                self.push(Object::Text(text))?;
            }
            // EMPTY_TUPLE, EMPTY_LIST, EMPTY_DICT
            b')' | b']' => self.push(Object::List(Vec::new()))?,
            b'}' => self.push(Object::Dict(Vec::new()))?,
            // TUPLE1, TUPLE2, TUPLE3, TUPLE
            count @ 0x85..=0x87 => {
                let mut items = Vec::new();
                for _ in 0x84..count {
                    items.insert(0, self.pop()?);
                }
                self.push(Object::List(items))?;
            }
            b't' => {
                let items = self.above_mark()?;
                self.push(Object::List(items))?;
            }
            // APPEND, APPENDS
            b'a' => {
                let item = self.pop()?;
                self.list()?.push(item);
            }
            b'e' => {
                let items = self.above_mark()?;
                self.list()?.extend(items);
            }
            // SETITEM, SETITEMS
            b's' => {
                let value = self.pop()?;
                let key = self.pop()?;
                self.dict()?.push((key, value));
            }
            b'u' => {
                let items = self.above_mark()?;
                let (pairs, rest) = items.as_chunks();
                if !rest.is_empty() {
                    return Err(self.damaged("a key without a value"));
                }
                self.dict()?.extend(pairs.iter().map(|[key, value]| (*key, *value)));
            }
            // BINPUT, LONG_BINPUT, MEMOIZE
            b'q' => {
                let [key] = self.fixed()?;
                self.memoize(key.into())?;
            }
            b'r' => {
                let key = u32::from_le_bytes(self.fixed()?);
                self.memoize(key.into())?;
            }
            0x94 => self.memoize(self.memo.len() as u64)?,
            // BINGET, LONG_BINGET
            b'h' => {
                let [key] = self.fixed()?;
                self.recall(key.into())?;
            }
            b'j' => {
                let key = u32::from_le_bytes(self.fixed()?);
                self.recall(key.into())?;
            }
            // GLOBAL, STACK_GLOBAL
            b'c' => {
                let (module, name) = (self.line()?, self.line()?);
                self.push(Object::Global(Global::named(&module, &name)?))?;
            }
            0x93 => {
                let (name, module) = (self.pop_text()?, self.pop_text()?);
                if name.len() + module.len() > LONGEST_NAME {
                    return Err(self.damaged("a class with a long name"));
                }
                self.push(Object::Global(Global::named(&module, &name)?))?;
            }
            // REDUCE
            b'R' => {
                let arguments = self.pop_arguments()?;
                let function = self.pop()?;
                let object = self.call(function, &arguments)?;
                self.push(object)?;
            }
            // BUILD: attributes of an OrderedDict, such as the `_metadata` of a state dict.
            b'b' => {
                self.pop()?;
                self.dict()?;
            }
            // BINPERSID
            b'Q' => {
                let id = self.pop_arguments()?;
                let storage = self.persistent(&id)?;
                self.push(Object::Storage(storage))?;
            }
            other => {
                let what = format!("instruction {other:#04x} at byte {at}");
                return Err(Problem::Refused(what));
            }
        }
        Ok(true)
    }

    fn call(&mut self, function: Id, arguments: &[Id]) -> Result<Object, Problem> {
        match (&self.objects[function], arguments) {
            (Object::Global(Global::OrderedDict), []) => Ok(Object::Dict(Vec::new())),
            (Object::Global(Global::OrderedDict), [items]) => {
                let wrong = || self.damaged("OrderedDict of something else than pairs");
                let items = self.items(*items).ok_or_else(wrong)?;
                let copied = self.copied + items.len();
                if copied > MOST_OBJECTS {
                    return Err(self.damaged(&format!("more than {MOST_OBJECTS} objects")));
                }
                let pairs = items.iter().map(|&pair| match self.items(pair) {
                    Some(&[key, value]) => Ok((key, value)),
                    _ => Err(wrong()),
                });
                let pairs = pairs.collect::<Result<_, _>>()?;
                self.copied = copied;
                Ok(Object::Dict(pairs))
            }
            (Object::Global(Global::RebuildTensor), [storage, offset, shape, strides, ..]) => {
                let Object::Storage(storage) = &self.objects[*storage] else {
                    return Err(self.damaged("a tensor without a storage"));
                };
                let offset = self.size(*offset)?;
                let (shape, strides) = (self.sizes(*shape)?, self.sizes(*strides)?);
                let view = View::new(storage.clone(), offset, shape, strides);
                view.map(Object::Tensor).map_err(Problem::Damaged)
            }
            (Object::Global(Global::RebuildParameter), [tensor, ..]) => {
                match &self.objects[*tensor] {
                    Object::Tensor(view) => Ok(Object::Tensor(view.clone())),
                    _ => Err(self.damaged("a parameter without a tensor")),
                }
            }
            _ => Err(self.damaged("a call of no function, or with other arguments than PyTorch's")),
        }
    }

    /// `('storage', class, key, device, elements)`, to which the older layout adds None.
    fn persistent(&mut self, id: &[Id]) -> Result<Storage, Problem> {
        let wrong = || self.damaged("a persistent object that is no storage");
        let (dtype, key, elements) = match id {
            [kind, class, key, _, elements, rest @ ..] => {
                let storage = self.text_of(*kind).is_some_and(|kind| &*kind == "storage");
                let whole = rest.iter().all(|&view| matches!(self.objects[view], Object::None));
                match &self.objects[*class] {
                    Object::Global(Global::Storage(dtype)) if storage && whole => {
                        (*dtype, self.text_of(*key).ok_or_else(wrong)?, self.size(*elements)?)
                    }
                    _ => return Err(wrong()),
                }
            }
            _ => return Err(wrong()),
        };
        if key.len() > LONGEST_NAME {
            return Err(self.damaged("a storage with a long name"));
        }
        let storage = Storage { dtype, key, elements };
        self.storages.insert(storage.key.clone(), storage.clone());
        Ok(storage)
    }

    fn damaged(&self, message: &str) -> Problem {
        Problem::Damaged(format!("the pickle is damaged at byte {}: {message}", self.at))
    }

    fn take(&mut self, count: usize) -> Result<&'a [u8], Problem> {
        let bytes = self.bytes.get(self.at..).and_then(|rest| rest.get(..count));
        let bytes = bytes.ok_or_else(|| self.damaged("it is cut short"))?;
        self.at += count;
        Ok(bytes)
    }

    fn fixed<const N: usize>(&mut self) -> Result<[u8; N], Problem> {
        let bytes = self.take(N)?;
        bytes.as_chunks().0.first().copied().ok_or_else(|| self.damaged("it is cut short"))
    }

    fn text(&mut self, length: usize) -> Result<Arc<str>, Problem> {
        let bytes = self.take(length)?;
        let text =
            std::str::from_utf8(bytes).map_err(|_| self.damaged("text that is not UTF-8"))?;
        Ok(text.into())
    }

    fn line(&mut self) -> Result<String, Problem> {
        let rest = &self.bytes[self.at..];
        let length = rest.iter().take(LONGEST_NAME).position(|&byte| byte == b'\n');
        let length = length.ok_or_else(|| self.damaged("a name that doesn't end"))?;
        let line = self.text(length)?.to_string();
        self.at += 1;
        Ok(line)
    }

    /// A little-endian number in two's complement, of as many bytes as it needs.
    fn long(&mut self) -> Result<i64, Problem> {
        let [length] = self.fixed()?;
        let bytes = self.take(length.into())?;
        if bytes.len() > 8 {
            return Err(self.damaged("a whole number of more than 64 bits"));
        }
        let negative = bytes.last().is_some_and(|byte| byte & 0x80 != 0);
        let mut all = if negative { [0xff; 8] } else { [0; 8] };
        all[..bytes.len()].copy_from_slice(bytes);
        Ok(i64::from_le_bytes(all))
    }

    fn push(&mut self, object: Object) -> Result<(), Problem> {
        if self.objects.len() == MOST_OBJECTS {
            return Err(self.damaged(&format!("more than {MOST_OBJECTS} objects")));
        }
        self.stack.push(self.objects.len());
        self.objects.push(object);
        Ok(())
    }

    /// The topmost object, not below the last mark.
    fn pop(&mut self) -> Result<Id, Problem> {
        let floor = self.marks.last().copied().unwrap_or(0);
        match self.stack.len() > floor {
            true => self.stack.pop().ok_or_else(|| self.damaged("an empty stack")),
            false => Err(self.damaged("an empty stack")),
        }
    }

    fn above_mark(&mut self) -> Result<Vec<Id>, Problem> {
        let mark = self.marks.pop().ok_or_else(|| self.damaged("no mark on the stack"))?;
        // `pop` stops at marks, so the stack is never below one.
        Ok(self.stack.split_off(mark))
    }

    fn pop_text(&mut self) -> Result<Arc<str>, Problem> {
        let id = self.pop()?;
        self.text_of(id).ok_or_else(|| self.damaged("expected text"))
    }

    fn pop_arguments(&mut self) -> Result<Vec<Id>, Problem> {
        let id = self.pop()?;
        self.few(id).map(<[Id]>::to_vec)
    }

    fn top(&self) -> Result<Id, Problem> {
        let floor = self.marks.last().copied().unwrap_or(0);
        let top = self.stack.get(floor..).and_then(<[Id]>::last);
        top.copied().ok_or_else(|| self.damaged("an empty stack"))
    }

    fn list(&mut self) -> Result<&mut Vec<Id>, Problem> {
        let top = self.top()?;
        let wrong = self.damaged("expected a list");
        match &mut self.objects[top] {
            Object::List(items) => Ok(items),
            _ => Err(wrong),
        }
    }

    fn dict(&mut self) -> Result<&mut Vec<(Id, Id)>, Problem> {
        let top = self.top()?;
        let wrong = self.damaged("expected a dictionary");
        match &mut self.objects[top] {
            Object::Dict(entries) => Ok(entries),
            _ => Err(wrong),
        }
    }

    fn memoize(&mut self, key: u64) -> Result<(), Problem> {
        let top = self.top()?;
        self.memo.insert(key, top);
        Ok(())
    }

    fn recall(&mut self, key: u64) -> Result<(), Problem> {
        let id = self.memo.get(&key).copied();
        let id = id.ok_or_else(|| self.damaged("an object that was never kept"))?;
        self.stack.push(id);
        Ok(())
    }

    fn text_of(&self, id: Id) -> Option<Arc<str>> {
        match &self.objects[id] {
            Object::Text(text) => Some(text.clone()),
            _ => None,
        }
    }

    fn items(&self, id: Id) -> Option<&[Id]> {
        match &self.objects[id] {
            Object::List(items) => Some(items),
            _ => None,
        }
    }

    /// A short tuple. Long ones are refused, because a pickle can use the same one a million times.
    fn few(&self, id: Id) -> Result<&[Id], Problem> {
        let items = self.items(id).filter(|items| items.len() <= MOST_ARGUMENTS);
        items.ok_or_else(|| self.damaged("expected a short tuple"))
    }

    fn size(&self, id: Id) -> Result<usize, Problem> {
        let size = match self.objects[id] {
            Object::Int(value) => usize::try_from(value).ok(),
            _ => None,
        };
        size.ok_or_else(|| self.damaged("expected a size"))
    }

    fn sizes(&self, id: Id) -> Result<Vec<usize>, Problem> {
        self.few(id)?.iter().map(|&item| self.size(item)).collect()
    }
}
