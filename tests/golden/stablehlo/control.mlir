module @control {
  func.func public @main(%x: tensor<3xf32>, %limit: tensor<i32>) -> (tensor<i32>, tensor<f32>, tensor<3xf32>) {
    %0 = stablehlo.constant dense<0> : tensor<i32>
    %1:2 = stablehlo.while(%2 = %0, %3 = %x) : tensor<i32>, tensor<3xf32>
    cond {
      %4 = stablehlo.compare LT, %2, %limit, SIGNED : (tensor<i32>, tensor<i32>) -> tensor<i1>
      stablehlo.return %4 : tensor<i1>
    } do {
      %5 = stablehlo.constant dense<1> : tensor<i32>
      %6 = stablehlo.add %2, %5 : tensor<i32>
      %7 = stablehlo.constant dense<0x40000000> : tensor<3xf32>
      %8 = stablehlo.multiply %3, %7 : tensor<3xf32>
      %9 = stablehlo.add %8, %x : tensor<3xf32>
      stablehlo.return %6, %9 : tensor<i32>, tensor<3xf32>
    }
    %10 = stablehlo.constant dense<3> : tensor<i32>
    %11 = stablehlo.compare GT, %1#0, %10, SIGNED : (tensor<i32>, tensor<i32>) -> tensor<i1>
    %12 = "stablehlo.if"(%11) ({
      %13 = stablehlo.subtract %1#1, %x : tensor<3xf32>
      stablehlo.return %13 : tensor<3xf32>
    }, {
      %14 = stablehlo.exponential %x : tensor<3xf32>
      stablehlo.return %14 : tensor<3xf32>
    }) : (tensor<i1>) -> tensor<3xf32>
    %15 = func.call @square.0(%12) : (tensor<3xf32>) -> tensor<3xf32>
    %16 = func.call @square.0(%15) : (tensor<3xf32>) -> tensor<3xf32>
    %17 = stablehlo.constant dense<0x00000000> : tensor<f32>
    %19 = stablehlo.constant dense<0> : tensor<i32>
    %20 = stablehlo.constant dense<1> : tensor<i32>
    %21 = stablehlo.constant dense<2> : tensor<i32>
    %22 = stablehlo.constant dense<3> : tensor<i32>
    %23 = stablehlo.constant dense<0.0> : tensor<3xf32>
    %27:3 = stablehlo.while(%24 = %19, %25 = %17, %26 = %23) : tensor<i32>, tensor<f32>, tensor<3xf32>
    cond {
      %28 = stablehlo.compare LT, %24, %22, SIGNED : (tensor<i32>, tensor<i32>) -> tensor<i1>
      stablehlo.return %28 : tensor<i1>
    } do {
      %29 = stablehlo.subtract %21, %24 : tensor<i32>
      %30 = stablehlo.dynamic_slice %16, %29, sizes = [1] : (tensor<3xf32>, tensor<i32>) -> tensor<1xf32>
      %31 = stablehlo.reshape %30 : (tensor<1xf32>) -> tensor<f32>
      %32 = stablehlo.add %25, %31 : tensor<f32>
      %33 = stablehlo.reshape %25 : (tensor<f32>) -> tensor<1xf32>
      %34 = stablehlo.dynamic_update_slice %26, %33, %29 : (tensor<3xf32>, tensor<1xf32>, tensor<i32>) -> tensor<3xf32>
      %35 = stablehlo.add %24, %20 : tensor<i32>
      %36 = stablehlo.subtract %21, %35 : tensor<i32>
      %37 = stablehlo.dynamic_slice %16, %36, sizes = [1] : (tensor<3xf32>, tensor<i32>) -> tensor<1xf32>
      %38 = stablehlo.reshape %37 : (tensor<1xf32>) -> tensor<f32>
      %39 = stablehlo.add %32, %38 : tensor<f32>
      %40 = stablehlo.reshape %32 : (tensor<f32>) -> tensor<1xf32>
      %41 = stablehlo.dynamic_update_slice %34, %40, %36 : (tensor<3xf32>, tensor<1xf32>, tensor<i32>) -> tensor<3xf32>
      %42 = stablehlo.add %35, %20 : tensor<i32>
      %43 = stablehlo.subtract %21, %42 : tensor<i32>
      %44 = stablehlo.dynamic_slice %16, %43, sizes = [1] : (tensor<3xf32>, tensor<i32>) -> tensor<1xf32>
      %45 = stablehlo.reshape %44 : (tensor<1xf32>) -> tensor<f32>
      %46 = stablehlo.add %39, %45 : tensor<f32>
      %47 = stablehlo.reshape %39 : (tensor<f32>) -> tensor<1xf32>
      %48 = stablehlo.dynamic_update_slice %41, %47, %43 : (tensor<3xf32>, tensor<1xf32>, tensor<i32>) -> tensor<3xf32>
      %49 = stablehlo.add %42, %20 : tensor<i32>
      stablehlo.return %49, %46, %48 : tensor<i32>, tensor<f32>, tensor<3xf32>
    }
    %50:2 = stablehlo.optimization_barrier %27#1, %27#2 : tensor<f32>, tensor<3xf32>
    // count, last, sums
    return %1#0, %50#0, %50#1 : tensor<i32>, tensor<f32>, tensor<3xf32>
  }
  func.func private @square.0(%arg0: tensor<3xf32>) -> (tensor<3xf32>) {
    %0 = stablehlo.multiply %arg0, %arg0 : tensor<3xf32>
    return %0 : tensor<3xf32>
  }
}
