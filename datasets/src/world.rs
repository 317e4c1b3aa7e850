//! The invented world: places with a colour, an animal, a food and a weather, which can be learned only from the training data.

use serde::de::Error;
use serde::{Deserialize, Deserializer, Serialize};

use crate::words::{ANIMALS, COLOURS, FOODS, UnknownName, WEATHER, Word};

/// An attribute of a place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Attribute {
    /// One of [`COLOURS`].
    Colour,
    /// One of [`ANIMALS`].
    Animal,
    /// One of [`FOODS`].
    Food,
    /// One of [`WEATHER`].
    Weather,
}

impl Attribute {
    /// All attributes.
    pub const ALL: [Self; 4] = [Self::Colour, Self::Animal, Self::Food, Self::Weather];

    /// The noun used in prompts.
    pub fn name(self) -> &'static str {
        match self {
            Self::Colour => "colour",
            Self::Animal => "animal",
            Self::Food => "food",
            Self::Weather => "weather",
        }
    }

    /// All possible values.
    pub fn values(self) -> &'static [Word; 4] {
        match self {
            Self::Colour => &COLOURS,
            Self::Animal => &ANIMALS,
            Self::Food => &FOODS,
            Self::Weather => &WEATHER,
        }
    }
}

/// A place of the invented world, serialised as its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(into = "String")]
pub struct Place {
    name: &'static str,
    colour: Word,
    animal: Word,
    food: Word,
    weather: Word,
}

impl Place {
    /// The capitalised name.
    pub fn name(self) -> &'static str {
        self.name
    }

    /// The value of an attribute, as the training data has it.
    pub fn value(self, attribute: Attribute) -> Word {
        match attribute {
            Attribute::Colour => self.colour,
            Attribute::Animal => self.animal,
            Attribute::Food => self.food,
            Attribute::Weather => self.weather,
        }
    }
}

impl TryFrom<String> for Place {
    type Error = UnknownName;

    fn try_from(name: String) -> Result<Self, UnknownName> {
        let found = PLACES.into_iter().find(|place| place.name == name);
        found.ok_or(UnknownName { what: "place", name })
    }
}

// By hand, because the derived implementation borrows `&'static str` fields from its input even with `TryFrom`.
impl<'de> Deserialize<'de> for Place {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.try_into().map_err(D::Error::custom)
    }
}

impl From<Place> for String {
    fn from(place: Place) -> Self {
        place.name.to_owned()
    }
}

const fn place(
    name: &'static str,
    colour: usize,
    animal: usize,
    food: usize,
    weather: usize,
) -> Place {
    Place {
        name,
        colour: COLOURS[colour],
        animal: ANIMALS[animal],
        food: FOODS[food],
        weather: WEATHER[weather],
    }
}

/// All places, with the indices of their colour, animal, food and weather. Each value belongs to three places, so that no guess is
/// better than another.
pub const PLACES: [Place; 12] = [
    place("Velm", 2, 2, 1, 3),
    place("Orra", 1, 3, 2, 1),
    place("Tesk", 0, 2, 2, 2),
    place("Junvo", 2, 1, 3, 2),
    place("Mirel", 2, 1, 3, 1),
    place("Zadon", 0, 3, 0, 0),
    place("Kess", 1, 3, 2, 3),
    place("Olbi", 3, 0, 3, 0),
    place("Farn", 1, 0, 1, 2),
    place("Wexa", 3, 1, 0, 0),
    place("Lunth", 0, 2, 1, 3),
    place("Bryle", 3, 0, 0, 1),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_belongs_to_three_places() {
        for attribute in Attribute::ALL {
            for value in attribute.values() {
                let owners = PLACES.iter().filter(|place| place.value(attribute) == *value).count();
                assert_eq!(owners, 3, "{attribute:?} {value:?}");
            }
        }
    }

    #[test]
    fn places_round_trip_through_json() {
        for place in PLACES {
            let json = serde_json::to_string(&place).unwrap();
            assert_eq!(serde_json::from_str::<Place>(&json).unwrap(), place);
        }
        let error = serde_json::from_str::<Place>("\"Paris\"").unwrap_err();
        assert_eq!(error.to_string(), "the built-in dataset has no place named `Paris`");
    }
}
