//! CubeK's kernels by name.

use std::fmt;

use burn::backend::cubecl::dtype_to_storage_type;
use burn_cubecl::tensor::CubeTensor;
use cubek::{
    matmul::{
        definition::{MatmulElems, MatmulGlobalElems},
        launch::launch_ref,
        multi_level::{
            Strategy as Multi,
            components::tile::TileMatmulKind,
            routines::batch::{
                double_buffering::DoubleBufferingArgs,
                ordered_double_buffering::OrderedSelectionArgs, simple::SimpleArgs,
            },
        },
        routine::BlueprintStrategy::Inferred,
        strategy::Strategy,
        tiled::{
            Strategy as Tiled,
            cmma::{CmmaDelivery, CmmaStrategy},
        },
    },
    std::InputBinding,
};

use crate::{ProductError, refused};

/// A kernel of CubeK.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct CubeK {
    /// How tiles are loaded into shared memory.
    pub routine: Routine,
    /// Which instructions multiply them.
    pub tiles: Tiles,
}

/// Instructions that multiply tiles.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Tiles {
    /// WMMA, with an opaque register layout.
    Cmma,
    /// `mma.sync` with `ldmatrix`.
    Mma,
    /// Plain multiply-adds, no tensor cores.
    Units,
}

/// CubeK's routines for general matrix products, by CubeK's names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum Routine {
    SpecializedTma,
    DoubleTma,
    DoubleTmaSpecialized,
    SimpleTma,
    SimpleTmaRows,
    OrderedDouble,
    OrderedDouble4,
    OrderedDouble8,
    DoubleCyclic,
    DoubleCyclicSpecialized,
    DoubleTilewise,
    DoubleHybrid,
    DoubleAsyncCyclic,
    DoubleAsyncStrided,
    SpecializedCyclic,
    SpecializedStrided,
    SimpleCyclic,
    SimpleCyclicRows,
    SimpleStrided,
    SimpleTilewise,
    SimpleAsyncCyclic,
    SimpleAsyncStrided,
    Tiled,
    TiledAsync,
    TiledTma,
    Simple,
    Double,
}

impl Routine {
    const NAMES: [(Self, &'static str); 27] = [
        (Self::SpecializedTma, "specialized-tma"),
        (Self::DoubleTma, "double-tma"),
        (Self::DoubleTmaSpecialized, "double-tma-specialized"),
        (Self::SimpleTma, "simple-tma"),
        (Self::SimpleTmaRows, "simple-tma-rows"),
        (Self::OrderedDouble, "ordered-double"),
        (Self::OrderedDouble4, "ordered-double-4"),
        (Self::OrderedDouble8, "ordered-double-8"),
        (Self::DoubleCyclic, "double-cyclic"),
        (Self::DoubleCyclicSpecialized, "double-cyclic-specialized"),
        (Self::DoubleTilewise, "double-tilewise"),
        (Self::DoubleHybrid, "double-hybrid"),
        (Self::DoubleAsyncCyclic, "double-async-cyclic"),
        (Self::DoubleAsyncStrided, "double-async-strided"),
        (Self::SpecializedCyclic, "specialized-cyclic"),
        (Self::SpecializedStrided, "specialized-strided"),
        (Self::SimpleCyclic, "simple-cyclic"),
        (Self::SimpleCyclicRows, "simple-cyclic-rows"),
        (Self::SimpleStrided, "simple-strided"),
        (Self::SimpleTilewise, "simple-tilewise"),
        (Self::SimpleAsyncCyclic, "simple-async-cyclic"),
        (Self::SimpleAsyncStrided, "simple-async-strided"),
        (Self::Tiled, "tiled"),
        (Self::TiledAsync, "tiled-async"),
        (Self::TiledTma, "tiled-tma"),
        (Self::Simple, "simple"),
        (Self::Double, "double"),
    ];

    /// The instructions that the routine supports.
    fn tiles(self) -> &'static [Tiles] {
        match self {
            Self::Tiled | Self::TiledAsync | Self::TiledTma => &[Tiles::Cmma],
            Self::Simple | Self::Double => &[Tiles::Units],
            _ => &[Tiles::Mma, Tiles::Cmma],
        }
    }
}

impl CubeK {
    /// All kernels, those with TMA first.
    pub fn all() -> Vec<Self> {
        let kernels = Routine::NAMES.into_iter().flat_map(|(routine, _)| {
            routine.tiles().iter().map(move |tiles| Self { routine, tiles: *tiles })
        });
        kernels.collect()
    }

    /// Whether the kernel needs TMA: Hopper or later.
    pub fn needs_tma(self) -> bool {
        use Routine::*;
        matches!(
            self.routine,
            SpecializedTma
                | DoubleTma
                | DoubleTmaSpecialized
                | SimpleTma
                | SimpleTmaRows
                | TiledTma
        )
    }

    fn strategy(self) -> Strategy {
        /// The variant for the instructions of the kernel.
        macro_rules! pick {
            ($cmma:ident, $mma:ident, $arguments:expr) => {
                match self.tiles {
                    Tiles::Mma => Multi::$mma(Inferred($arguments)),
                    Tiles::Cmma | Tiles::Units => Multi::$cmma(Inferred($arguments)),
                }
            };
        }
        let tile_matmul = match self.tiles {
            Tiles::Mma => TileMatmulKind::Mma,
            Tiles::Cmma | Tiles::Units => TileMatmulKind::Cmma,
        };
        let simple = |multi_rows| SimpleArgs { multi_rows, tile_matmul };
        let double = |specialized| DoubleBufferingArgs { specialized, tile_matmul };
        let ordered = |row_count| OrderedSelectionArgs {
            partition_k: Some(2),
            row_count: Some(row_count),
            rows_per_plane: Some(2),
            tile_matmul,
        };
        let multi = match self.routine {
            Routine::SpecializedTma => pick!(SpecializedTmaCmma, SpecializedTmaMma, ().into()),
            Routine::DoubleTma => pick!(DoubleTmaCmma, DoubleTmaMma, double(false)),
            Routine::DoubleTmaSpecialized => pick!(DoubleTmaCmma, DoubleTmaMma, double(true)),
            Routine::SimpleTma => pick!(SimpleTmaCmma, SimpleTmaMma, simple(false)),
            Routine::SimpleTmaRows => pick!(SimpleTmaCmma, SimpleTmaMma, simple(true)),
            Routine::OrderedDouble => {
                let inferred = OrderedSelectionArgs { tile_matmul, ..Default::default() };
                pick!(OrderedDoubleCmma, OrderedDoubleMma, inferred)
            }
            Routine::OrderedDouble4 => pick!(OrderedDoubleCmma, OrderedDoubleMma, ordered(4)),
            Routine::OrderedDouble8 => pick!(OrderedDoubleCmma, OrderedDoubleMma, ordered(8)),
            Routine::DoubleCyclic => pick!(DoubleCyclicCmma, DoubleCyclicMma, double(false)),
            Routine::DoubleCyclicSpecialized => {
                pick!(DoubleCyclicCmma, DoubleCyclicMma, double(true))
            }
            Routine::DoubleTilewise => pick!(DoubleTilewiseCmma, DoubleTilewiseMma, double(false)),
            Routine::DoubleHybrid => pick!(DoubleHybridCmma, DoubleHybridMma, double(false)),
            Routine::DoubleAsyncCyclic => {
                pick!(DoubleAsyncCyclicCmma, DoubleAsyncCyclicMma, double(false))
            }
            Routine::DoubleAsyncStrided => {
                pick!(DoubleAsyncStridedCmma, DoubleAsyncStridedMma, double(false))
            }
            Routine::SpecializedCyclic => {
                pick!(SpecializedCyclicCmma, SpecializedCyclicMma, ().into())
            }
            Routine::SpecializedStrided => {
                pick!(SpecializedStridedCmma, SpecializedStridedMma, ().into())
            }
            Routine::SimpleCyclic => pick!(SimpleCyclicCmma, SimpleCyclicMma, simple(false)),
            Routine::SimpleCyclicRows => pick!(SimpleCyclicCmma, SimpleCyclicMma, simple(true)),
            Routine::SimpleStrided => pick!(SimpleStridedCmma, SimpleStridedMma, simple(false)),
            Routine::SimpleTilewise => pick!(SimpleTilewiseCmma, SimpleTilewiseMma, simple(false)),
            Routine::SimpleAsyncCyclic => {
                pick!(SimpleAsyncCyclicCmma, SimpleAsyncCyclicMma, simple(false))
            }
            Routine::SimpleAsyncStrided => {
                pick!(SimpleAsyncStridedCmma, SimpleAsyncStridedMma, simple(false))
            }
            Routine::Tiled => return tiled(CmmaDelivery::SyncPerUnit),
            Routine::TiledAsync => return tiled(CmmaDelivery::AsyncPerUnit),
            Routine::TiledTma => return tiled(CmmaDelivery::Tma),
            Routine::Simple => Multi::SimpleUnit(Default::default()),
            Routine::Double => Multi::DoubleUnit(Default::default()),
        };
        Strategy::MultiLevel(multi)
    }
}

fn tiled(delivery: CmmaDelivery) -> Strategy {
    Strategy::Tiled(Tiled::Cmma(Inferred(CmmaStrategy { delivery })))
}

impl fmt::Display for CubeK {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = Routine::NAMES.iter().find(|(routine, _)| *routine == self.routine);
        let name = name.map_or("", |(_, name)| name);
        let tiles = match self.tiles {
            Tiles::Cmma => "cmma",
            Tiles::Mma => "mma",
            Tiles::Units => "unit",
        };
        write!(f, "{name}-{tiles}")
    }
}

/// `output = lhs·rhs`; without a kernel, by CubeK's default.
pub(super) fn launch(
    kernel: Option<CubeK>,
    lhs: &CubeTensor,
    rhs: &CubeTensor,
    output: &CubeTensor,
) -> Result<(), ProductError> {
    let strategy = kernel.map_or(Strategy::Auto, CubeK::strategy);
    let [lhs_type, rhs_type, out_type] = [lhs, rhs, output].map(|x| dtype_to_storage_type(x.dtype));
    let mut types = MatmulElems::from_globals(&MatmulGlobalElems {
        lhs: lhs_type,
        rhs: rhs_type,
        out: out_type,
    });
    launch_ref(
        &strategy,
        &output.client,
        InputBinding::new(lhs.clone().binding(), lhs_type),
        InputBinding::new(rhs.clone().binding(), rhs_type),
        output.clone().binding(),
        &mut types,
    )
    .map_err(|error| {
        let name = kernel.map_or_else(|| "burn".to_owned(), |kernel| kernel.to_string());
        refused(name, format!("{error:?}"))
    })
}
