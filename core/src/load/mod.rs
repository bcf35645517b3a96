//! Load: how much of it there is at each moment, and what each user does next. All pure.

mod arrivals;
mod model;
mod profile;
mod spawn_rate;
mod task_picker;

pub use arrivals::Arrivals;
pub use model::{ArrivalLoad, ArrivalStages, LoadModel, Stage, StageLoad, UserLoad, UserStages};
pub use profile::LoadProfile;
pub use task_picker::{TaskPicker, UserRng};
