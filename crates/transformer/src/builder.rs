//! Building parameters on a device, one tensor at a time.

use std::ops::Range;

use burn::{
    module::{Param, ParamId},
    tensor::{DType, Tensor, TensorData},
};

use crate::{Error, Linear, ModelConfig, Placement, RmsNorm};

/// Some rows of a parameter: all of them, except for an embedding or unembedding in several parts.
#[derive(Clone, Debug)]
pub struct Piece<'a> {
    /// The parameter's name in a checkpoint.
    pub name: &'a str,
    /// The shape of the whole parameter.
    pub shape: &'a [usize],
    /// Which of its rows (first dimension). Pieces of a parameter are asked for in order.
    pub rows: Range<usize>,
    /// The type in which they are stored on the device. Values of another type are converted, for which both are in memory.
    pub dtype: DType,
}

impl Piece<'_> {
    /// The shape of these rows.
    pub fn dims(&self) -> Vec<usize> {
        let mut dims = self.shape.to_vec();
        dims[0] = self.rows.len();
        dims
    }

    /// The positions of their elements in the whole, flattened parameter.
    pub fn places(&self) -> Range<usize> {
        let row = self.shape[1..].iter().product::<usize>();
        self.rows.start * row..self.rows.end * row
    }

    /// Whether these are the parameter's first rows.
    pub fn is_first(&self) -> bool {
        self.rows.start == 0
    }
}

/// Provides the values of a piece of a parameter, from a checkpoint or a random generator.
pub type Provider<'a> = &'a mut dyn FnMut(&Piece) -> Result<TensorData, Error>;

/// Builds parameters on their device and in their type.
pub(crate) struct Builder<'a> {
    pub(crate) provider: Provider<'a>,
    pub(crate) placement: Placement,
}

impl Builder<'_> {
    pub(crate) fn param<const D: usize>(
        &mut self,
        name: String,
        shape: [usize; D],
    ) -> Result<Param<Tensor<D>>, Error> {
        self.whole(&name, shape, DType::F32)
    }

    pub(crate) fn linear(
        &mut self,
        name: String,
        out: usize,
        inner: usize,
        has_bias: bool,
    ) -> Result<Linear, Error> {
        let weight = self.whole(&format!("{name}.weight"), [out, inner], self.matrix_type())?;
        let bias = match has_bias {
            true => Some(self.param(format!("{name}.bias"), [out])?),
            false => None,
        };
        Ok(Linear::new(weight, bias, self.placement.precision))
    }

    pub(crate) fn norm(
        &mut self,
        name: String,
        width: usize,
        config: &ModelConfig,
    ) -> Result<RmsNorm, Error> {
        let weight = self.param(format!("{name}.weight"), [width])?;
        Ok(RmsNorm { weight, gain: config.gain, eps: config.rms_norm_eps })
    }

    /// A norm that only some models have.
    pub(crate) fn norm_if(
        &mut self,
        exists: bool,
        name: String,
        width: usize,
        config: &ModelConfig,
    ) -> Result<Option<RmsNorm>, Error> {
        exists.then(|| self.norm(name, width, config)).transpose()
    }

    /// The type of parameters that are factors of matrix products.
    pub(crate) fn matrix_type(&self) -> DType {
        let Placement { device, precision, .. } = &self.placement;
        precision.of_matrix(device)
    }

    /// A parameter in a single tensor.
    fn whole<const D: usize>(
        &mut self,
        name: &str,
        shape: [usize; D],
        dtype: DType,
    ) -> Result<Param<Tensor<D>>, Error> {
        let bytes = shape.iter().fold(dtype.size(), |bytes, &n| bytes.saturating_mul(n));
        match self.placement.largest_tensor {
            Some(largest) if bytes > largest => {
                Err(Error::TooLarge { name: name.to_owned(), bytes, largest, parts: 1 })
            }
            _ => self.piece(&Piece { name, shape: &shape, rows: 0..shape[0], dtype }),
        }
    }

    pub(crate) fn piece<const D: usize>(
        &mut self,
        piece: &Piece,
    ) -> Result<Param<Tensor<D>>, Error> {
        let data = (self.provider)(piece)?;
        let device = &self.placement.device;
        // On a device with autodiff this makes the tensor a leaf of the graph.
        let tensor = Tensor::from_data(data, (device, piece.dtype));
        let tensor = if device.is_autodiff() { tensor.require_grad() } else { tensor };
        Ok(Param::initialized(ParamId::new(), tensor))
    }
}
