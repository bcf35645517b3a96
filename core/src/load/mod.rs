//! Load: how much of it there is at each moment, and what each user does next. All pure.

mod model;
mod profile;
mod task_picker;

pub use model::{ArrivalLoad, ArrivalStages, LoadModel, Stage, StageLoad, UserLoad, UserStages};
pub use profile::{Arrivals, LoadProfile};
pub use task_picker::{TaskPicker, UserRng};
