//! Sums of a comparison over tokens and texts, from which means and standard errors follow.

use super::{Drift, FeatureDrift, Level, Place};

/// Sums of one feature.
#[derive(Clone, Default)]
struct OfFeature {
    /// Activations before and after.
    sums: [f64; 2],
    /// Positions at which it is active, before and after.
    active: [u64; 2],
    /// Squares of the texts' changes.
    squares: f64,
    /// Products of the texts' changes and their numbers of positions.
    products: f64,
    /// Largest change first.
    places: Vec<Place>,
}

/// What was read of the text in progress.
#[derive(Clone)]
struct Open {
    tokens: usize,
    /// The sum of each feature's changes.
    changes: Vec<f64>,
    /// Where each feature changed most.
    places: Vec<Option<Place>>,
    /// Features that were active.
    touched: Vec<usize>,
    is_touched: Vec<bool>,
}

/// Sums over all that was read. Positions of a text are added one after the other; [`Sums::close`] ends the text.
pub struct Sums {
    features: Vec<OfFeature>,
    open: Open,
    /// Places kept per feature.
    most: usize,
    texts: usize,
    tokens: usize,
    /// Squares of the texts' numbers of positions.
    squares: f64,
}

impl Sums {
    pub fn new(features: usize, most: usize) -> Self {
        Self {
            features: vec![OfFeature::default(); features],
            open: Open {
                tokens: 0,
                changes: vec![0.0; features],
                places: vec![None; features],
                touched: Vec::new(),
                is_touched: vec![false; features],
            },
            most,
            texts: 0,
            tokens: 0,
            squares: 0.0,
        }
    }

    /// Adds the position of `place`, given the activations of all features before and after. `[d_sae]` each
    pub fn add(&mut self, place: Place, before: &[f32], after: &[f32]) {
        self.open.tokens += 1;
        for (index, (&before, &after)) in before.iter().zip(after).enumerate() {
            if before == 0.0 && after == 0.0 {
                continue;
            }
            let feature = &mut self.features[index];
            for (side, value) in [before, after].into_iter().enumerate() {
                feature.sums[side] += f64::from(value);
                feature.active[side] += u64::from(value > 0.0);
            }
            let open = &mut self.open;
            if !open.is_touched[index] {
                open.is_touched[index] = true;
                open.touched.push(index);
            }
            open.changes[index] += f64::from(after) - f64::from(before);
            let place = Place { before, after, ..place };
            if place.size() > open.places[index].map_or(0.0, |best| best.size()) {
                open.places[index] = Some(place);
            }
        }
    }

    /// Ends a text.
    pub fn close(&mut self) {
        let open = &mut self.open;
        if open.tokens == 0 {
            return;
        }
        let tokens = open.tokens as f64;
        self.texts += 1;
        self.tokens += open.tokens;
        self.squares += tokens * tokens;
        open.tokens = 0;
        for index in open.touched.drain(..) {
            open.is_touched[index] = false;
            let (feature, change) = (&mut self.features[index], &mut open.changes[index]);
            feature.squares += *change * *change;
            feature.products += *change * tokens;
            *change = 0.0;
            if let Some(place) = open.places[index].take() {
                feature.offer(place, self.most);
            }
        }
    }

    pub fn finish(self) -> Drift {
        let (texts, tokens) = (self.texts as f64, self.tokens as f64);
        let finish = |feature: OfFeature| {
            let level = |side: usize| Level {
                mean: feature.sums[side] / tokens,
                firing: feature.active[side] as f64 / tokens,
            };
            let (before, after) = (level(0), level(1));
            let change = after.mean - before.mean;
            // Of a ratio of sums over texts (Cochran, Sampling Techniques, § 6.4): the residual of a text is its change less what
            // the mean change would give at its number of positions.
            let residuals =
                feature.squares - 2.0 * change * feature.products + change * change * self.squares;
            let variance = texts / (texts - 1.0) * residuals.max(0.0);
            FeatureDrift {
                before,
                after,
                standard_error: (self.texts > 1).then(|| variance.sqrt() / tokens),
                places: feature.places,
            }
        };
        let features = self.features.into_iter().map(finish).collect();
        Drift { texts: self.texts, tokens: self.tokens, features }
    }
}

impl OfFeature {
    /// Keeps a place if it is among the `most` largest changes. Texts come in any order: of equal changes that of the first text stays.
    fn offer(&mut self, place: Place, most: usize) {
        if let Some(at) = self.places.iter().position(|other| other.prefix == place.prefix) {
            if self.places[at].text < place.text {
                return;
            }
            self.places.remove(at);
        }
        let comes_first = |other: &Place| {
            let by_size = place.size().total_cmp(&other.size());
            by_size.then(other.text.cmp(&place.text)).is_lt()
        };
        let at = self.places.partition_point(comes_first);
        if at < most {
            self.places.insert(at, place);
            self.places.truncate(most);
        }
    }
}
